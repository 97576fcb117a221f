"""The stage `align`: from written text to written words with times, by each kind of aligner."""

import itertools
import json
import string

import numpy as np
import pytest
import soundfile
import torch

from lit_moss.codec.ctc import CharVocabulary, CTCHead
from lit_moss.data.interleave import chunk_words, document_rng, join_words
from lit_moss.errors import UserError
from lit_moss.prepare.align import AlignOptions, AlignStage, align_item, words_of
from lit_moss.prepare.aligners import ASRAligner, CTCAligner, HuggingFaceModel, tokenizer_checkpoint
from lit_moss.prepare.forced_alignment import CannotAlign
from lit_moss.prepare.storage import Storage

RATE_HZ = 16_000


class Script:
    """An acoustic model that is sure of a given text: a letter every third frame from one second on."""

    blank = 0

    def __init__(self, said, letters=string.ascii_lowercase, frames=400, probability=0.9, separator=True):
        self.vocabulary = {c: i for i, c in enumerate(letters, start=2)}
        self.separator = 1 if separator else None
        self.said, self.frames, self.probability = said, frames, probability

    def log_probs(self, wave_T):
        size = len(self.vocabulary) + 2
        path = torch.zeros(self.frames, dtype=torch.long)
        for i, c in enumerate(self.said):
            path[50 + 3 * i] = self.vocabulary.get(c, 1)
        rest = torch.rand(self.frames, size, generator=torch.Generator().manual_seed(0))
        rest *= (1 - self.probability) / rest.sum(dim=1, keepdim=True)
        rest[torch.arange(self.frames), path] += self.probability
        return rest.log(), 0.02


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 8 * RATE_HZ), RATE_HZ)
    return str(path)


def item(sound, text, **more):
    return {"audio_filepath": sound, "duration": 8.0, "text": text, "lang": "en", "id": "a"} | more


def align(sound, text, model, shift_sec=0.0, lang="en", **options):
    options = {"min_letters_per_sec": 0.0} | options  # a few letters in 8 s
    return align_item(item(sound, text, lang=lang), CTCAligner(model), AlignOptions(**options), shift_sec)


def test_written_words_have_the_times_of_what_is_spoken(sound):
    aligned, counts = align(
        sound, "In 1905, it cost $3.", Script("in nineteen oh five it cost three dollars")
    )
    assert [w for w, _, _ in aligned["words"]] == ["In", "1905,", "it", "cost", "$3."]
    starts = {w: start for w, start, _ in aligned["words"]}
    at = "in nineteen oh five it cost three dollars".index
    assert starts["1905,"] == pytest.approx(1 + 0.06 * at("nineteen"))
    assert starts["it"] == pytest.approx(1 + 0.06 * at("it cost"))
    assert aligned["words"][1][2] == pytest.approx(1 + 0.06 * (at(" it cost") - 1) + 0.02)
    assert aligned["use"] == "interleave"
    assert aligned["align_score"] == pytest.approx(0.9, abs=0.02)
    assert counts["words"] == 5
    assert counts["interleave"] == 1
    assert counts["interpolated words"] == 0
    assert aligned["id"] == "a"
    assert join_words([w for w, _, _ in aligned["words"]]) == aligned["text"]


def test_shift_is_taken_off_and_told(sound):
    plain, _ = align(sound, "so it is", Script("so it is"))
    moved, counts = align(sound, "so it is", Script("so it is"), shift_sec=0.06)
    assert [[w, pytest.approx(a - 0.06), pytest.approx(b - 0.06)] for w, a, b in plain["words"]] == moved[
        "words"
    ]
    assert counts["shifted by -60 ms"] == 1
    early, _ = align(sound, "so it is", Script("so it is"), shift_sec=-7.5)
    assert early["words"][-1][1:] == [8.0, 8.0]  # not after the end of the utterance


@pytest.mark.slow
def test_chinese_is_romanised_for_letters_and_kept_for_characters(sound):
    for model in (
        Script("yi ge ren you liang qian kuai"),
        Script("一 个 人 有 两 千 块", letters="一个人有两千块"),
        Script("一个人有两千块", letters="一个人有两千块", separator=False),
    ):
        aligned, counts = align(sound, "一个人，有两千块。", model, lang="zh")
        assert [w for w, _, _ in aligned["words"]] == ["一", "个", "人，", "有", "两", "千", "块。"]
        assert counts["letters by wildcard"] == 0
        assert aligned["use"] == "interleave"
        times = [t for _, *span in aligned["words"] for t in span]
        assert times == sorted(times)


def test_letters_out_of_the_vocabulary_become_wildcards_and_accents_do_not(sound):
    letters = string.ascii_lowercase.replace("j", "")
    aligned, counts = align(sound, "a café was jolly open", Script("a cafe was jolly open", letters=letters))
    assert counts["letters by wildcard"] == 1
    word, start, _ = aligned["words"][3]
    assert word == "jolly"
    assert start == pytest.approx(1 + 0.06 * len("a cafe was "), abs=0.05)


def test_capital_vocabularies_are_spelled_in_capitals(sound):
    _, counts = align(sound, "so it is", Script("SO IT IS", letters=string.ascii_uppercase))
    assert counts["letters by wildcard"] == 0


def test_words_that_are_not_said_are_interpolated_and_counted(sound):
    aligned, counts = align(sound, "so 🎉 it is", Script("so it is"))
    assert counts["interpolated words"] == sum(w == "🎉" for w, _, _ in aligned["words"])
    assert len(chunk_words([tuple(w) for w in aligned["words"]], 100, document_rng(0, "a"))) >= 1


# --- rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("probability", "use"), [(0.9, "interleave"), (0.45, "speech"), (0.15, None)])
def test_score_decides_between_three_uses(sound, probability, use):
    model = Script("so it is", probability=probability)
    if use:
        assert align(sound, "so it is", model)[0]["use"] == use
        return
    with pytest.raises(CannotAlign) as refused:
        align(sound, "so it is", model)
    assert refused.value.reason == "mean probability of the letters"
    assert refused.value.value < refused.value.threshold == 0.3


def test_wrong_text_is_rejected(sound):
    with pytest.raises(CannotAlign):
        align(sound, "completely other words", Script("so it is what they said"))


def refusal(sound, text, model, **options):
    with pytest.raises(CannotAlign) as refused:
        align(sound, text, model, **options)
    return refused.value


def test_rules_name_what_they_measured(sound):
    long = refusal(sound, "ab cd ef gh", Script("ab cd ef gh"), longest_word_sec=0.05)
    assert (long.reason, long.value, long.threshold) == ("longest word in seconds", 0.08, 0.05)
    fast = refusal(sound, "word " * 80, Script("word"))
    assert (fast.reason, fast.value, fast.threshold) == ("too many letters a second", 40.0, 25.0)
    slow = refusal(sound, "no", Script("no"), min_letters_per_sec=2.0)
    assert (slow.reason, slow.value, slow.threshold) == ("too few letters a second", 0.25, 2.0)
    weak = refusal(sound, "so it is what q", Script("so it is what "), max_weak_share=0.1)
    assert (weak.reason, weak.value, weak.threshold) == ("share of weak words", 0.2, 0.1)
    assert refusal(sound, "", Script("a")).reason == "no letters to align"
    assert refusal(sound, "…", Script("a")).reason == "no letters to align"
    assert refusal(sound, "ça va", Script("a"), lang="fr").reason == "language without spoken forms"
    assert refusal(sound, "so it is so", Script("", frames=5)).reason == "text too long for its audio"
    foreign = refusal(sound, "so it is", Script("", letters="xyz"))
    assert foreign.reason == "no letter of the text is in the aligner's vocabulary"


def test_long_segments_are_rejected_without_aligning(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(31 * 8000), 8000)
    with pytest.raises(CannotAlign, match="longer than"):
        CTCAligner(Script("a")).align({"audio_filepath": str(path), "duration": 31.0}, ["a"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"lang": "de"}, {"speech_score": 0.9}, {"interleave_score": 1.5}, {"longest_word_sec": 0},
        {"shift_sec": 3.0}, {"min_letters_per_sec": 30.0},
    ],
)  # fmt: skip
def test_wrong_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        AlignOptions(**wrong)


# --- word times of ASR --------------------------------------------------------------------------------------

ASR_WORDS = [["In", 0.1, 0.3, 0.9], ["1905,", 0.4, 1.6, 0.8], ["it", 1.7, 1.8, 0.9], ["costs", 1.9, 2.4, 0.7]]


def test_times_of_asr_are_taken_by_matching_texts(sound, tmp_path):
    stage = AlignStage(AlignOptions(aligner="whisper"), Storage(str(tmp_path)))
    stage.open()
    same = item(sound, "In 1905, it costs", duration=2.5, asr_words=ASR_WORDS)
    other = item(sound, "in nineteen oh five it really costs", duration=2.5, asr_words=ASR_WORDS)
    none = item(sound, "in nineteen oh five it costs", duration=2.5)
    result = stage.run([same, other, none])
    assert result.items[0]["words"] == [[w, a, b] for w, a, b, _ in ASR_WORDS]
    words = {w: (a, b) for w, a, b in result.items[1]["words"]}
    assert words["nineteen"][0] == 0.4
    assert words["five"][1] == 1.6
    assert words["really"] == (1.8, 1.9)  # the gap between its neighbours
    assert result.counts["interpolated words"] == 1
    assert [r.reason for r in result.rejected] == ["no word times of ASR"]


def test_tokens_of_chinese_asr_are_cut_into_characters(sound):
    aligner = ASRAligner()
    found = aligner.align(
        {"asr_words": [["你好", 0.0, 1.0, 0.8], ["吗", 1.0, 1.4, 0.6]], "lang": "zh"}, list("你好吗")
    )
    assert [(w.start_sec, w.end_sec) for w in found.words] == [(0.0, 0.5), (0.5, 1.0), (1.0, 1.4)]


# --- models -------------------------------------------------------------------------------------------------


@pytest.fixture
def wav2vec2(tmp_path):
    """A tiny untrained wav2vec 2.0 in a folder, with the vocabulary of facebook/wav2vec2-base-960h."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", *string.ascii_uppercase]
    (tmp_path / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    folder = tmp_path / "wav2vec2"
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(symbols), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def test_hugging_face_models_by_folder(wav2vec2, sound, tmp_path):
    model = HuggingFaceModel(str(wav2vec2), "cpu")
    assert set(model.vocabulary) == {"'", *string.ascii_uppercase}
    assert (model.blank, model.separator) == (0, 4)
    log_probs, seconds = model.log_probs(torch.randn(RATE_HZ))
    assert log_probs.shape == (49, 32)
    assert seconds == pytest.approx(1 / 49)
    stage = AlignStage(
        AlignOptions(aligner=str(wav2vec2), speech_score=0, max_weak_share=1, longest_word_sec=9),
        Storage(str(tmp_path)),
    )
    stage.open()
    result = stage.run([item(sound, "So it's 5 o'clock.")])
    assert result.items[0]["use"] == "speech"
    assert result.items[0]["aligner"] == str(wav2vec2)
    assert result.counts["letters by wildcard"] == 0
    before = stage.content()["weights"]
    with (wav2vec2 / "config.json").open("a") as file:
        file.write("\n")
    assert before != stage.content()["weights"]


def test_a_folder_without_a_ctc_model_is_named(tmp_path):
    with pytest.raises(UserError, match="wav2vec2-base-960h"):
        HuggingFaceModel(str(tmp_path), "cpu")


@pytest.fixture
def run(tiny_encoder, tmp_path):
    """A checkpoint of an untrained tokenizer with its head."""
    encoder, vocabulary = tiny_encoder(), CharVocabulary(" '" + string.ascii_lowercase)
    head = CTCHead(64, len(vocabulary), 64, layers=2, heads=1, dropout=0.1)
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"head.{k}": v for k, v in head.state_dict().items()}
    part = {"config": encoder.config.to_official(), "codebook_ready": True, "charset": "latin_chinese",
            "characters": vocabulary.characters}  # fmt: skip
    path = tmp_path / "tokenizer.ckpt"
    torch.save({"state_dict": state, "speech_tokenizer": part}, path)
    return path, encoder, head


def test_the_head_of_a_tokenizer_run_aligns(run, sound, tmp_path):
    from lit_moss.codec.pretrained import head_of_checkpoint

    path, _, head = run
    opened, vocabulary = head_of_checkpoint(path)
    frames = torch.randn(1, 8, 64)
    assert torch.equal(opened.eval()(frames), head.eval()(frames))
    assert vocabulary.characters[:2] == " '"
    options = AlignOptions(aligner="tokenizer", speech_tokenizer=str(path), speech_score=0, max_weak_share=1,
                           longest_word_sec=9, shift_sec=0.04)  # fmt: skip
    stage = AlignStage(options, Storage(str(tmp_path)))
    stage.open()
    result = stage.run([item(sound, "So it is 5 o'clock.")])
    assert len(result.items[0]["words"]) == 5
    assert result.counts["shifted by -40 ms"] == 1
    assert len(stage.content()["weights"]) == 64
    assert stage.run([item(sound, "So it is 5 o'clock.")]) == result


def test_a_tokenizer_without_a_head_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name in (None, str(tmp_path)):
        with pytest.raises(UserError, match="speech_tokenizer"):
            tokenizer_checkpoint(name)


@pytest.mark.slow
def test_known_borders_measure_a_shift():
    """Words that begin 100 ms late and end 20 ms late have their borders 60 ms late."""
    from lit_moss.corpora.everyday import RATE_HZ as VOICE_HZ
    from lit_moss.corpora.everyday import hibari, sentences
    from lit_moss.prepare.aligners import Alignment
    from lit_moss.prepare.forced_alignment import TimedWord
    from lit_moss.prepare.known_borders import BorderErrors, joined_words, measure_shift

    wave_T, true = joined_words(sentences()[0], "known borders 0", hibari())
    for (_, _, end), (_, start, _) in itertools.pairwise(true):
        pause = wave_T[round(end * VOICE_HZ) : round(start * VOICE_HZ)]
        assert start >= end
        assert np.abs(pause).max(initial=0) < 1e-3
    assert np.abs(wave_T[round(true[0][1] * VOICE_HZ) :][:4000]).max() > 0.01

    class Late:
        def align(self, item, words):
            assert words == [word for word, _, _ in true]
            return Alignment([TimedWord(start + 0.1, end + 0.02, 0.9) for _, start, end in true])

    errors = measure_shift(Late(), count=1)
    assert errors.shift_sec == pytest.approx(0.06)
    assert BorderErrors([0.5], 0.1).shift_sec == 0.0


def test_words_of_written_text():
    assert words_of("(Well-known) on May 6, 1990", "en")[0] == ("(Well-known)", ["Well", "known"])
    assert words_of("有2本书", "zh")[-1] == ("书", ["书"])
