"""Documents that carry the text of their speech, transcripts, and spans of words: rows against strings."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from lm_recipe import tokenizer_of_bytes

from lit_moss.corpora.manifest import Utterance, write_manifest
from lit_moss.data import InterleavedDataModule, MixtureDataModule, TextDataModule, TranscriptDataModule
from lit_moss.data.batches import SpeechText
from lit_moss.data.document_builders import BUILDERS
from lit_moss.data.documents import DocumentWriter, read_documents
from lit_moss.data.make_documents import OPTIONS, _checked_options, _recorded_options
from lit_moss.data.word_spans import WordSpans, spans_by_turns
from lit_moss.errors import UserError
from lit_moss.hub.code_cache import EncodedUtterances
from lit_moss.llm.backbone import load_text_tokenizer, row_format

CODES = 32
SENTENCE = "The cat sat on a warm mat."
WORDS = ["The", "cat", "sat", "on", "a", "warm", "mat."]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_of_bytes().save_pretrained(folder)
    return load_text_tokenizer(folder)


@pytest.fixture
def form(tokenizer):
    return row_format(tokenizer, 128, eosp=CODES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))


def utterances(tmp_path, count=6, timed=True):
    """Of seven words with 0.4 s each, 35 codes; the codes of word i are 4 i mod 32."""
    extra = {"words": [[w.strip(".").lower(), 0.4 * i, 0.4 * (i + 1)] for i, w in enumerate(WORDS)]}
    found = [Utterance(tmp_path / f"a-{i}.wav", 0.0, 2.8, SENTENCE, "eve", "en", extra if timed else {})
             for i in range(count)]  # fmt: skip
    return found, [[4 * (j // 5) % CODES for j in range(35)] for _ in found]


def made(kind, tmp_path, tokenizer, form, timed=True, **options):
    builder = BUILDERS[kind](tokenizer, form, OPTIONS[kind] | options)
    found, codes = utterances(tmp_path, timed=timed)
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, found)
    builder.add_speech(manifest, found, EncodedUtterances(codes, []))
    return list(builder.documents(manifest))


def spelled(rows, form, tokenizer):
    """Text as it is, `<23>` for a stretch of 23 codes, `.` at the end of the document."""
    text, count = "", 0
    for row in rows:
        if row == form.eosp_row:
            text, count = f"{text}{count}>", 0
        elif row >= form.text_vocab_size:
            count += 1
        else:
            text += {form.sosp_token_id: "<", form.end_id: "|"}.get(row) or tokenizer.decode([row])
    return text


def test_transcripts_are_speech_then_text_and_text_then_speech(tmp_path, tokenizer, form):
    documents = made("transcripts", tmp_path, tokenizer, form)
    assert [d.id for d in documents][:3] == ["a-0/asr", "a-0/tts", "a-1/asr"]
    assert [spelled(d.rows, form, tokenizer) for d in documents[:2]] == [
        f"<35>{SENTENCE}|",
        f"{SENTENCE}<35>|",
    ]
    assert documents[0].loss_mask is None
    assert documents[0].speech_text is None
    assert documents[0].speech_sec == pytest.approx(2.8)


def test_prompts_and_answers_as_targets(tmp_path, tokenizer, form):
    options = {"asr_prompt": "Write: ", "tts_prompt": "Say: ", "train_on": "answer"}
    asr, tts = made("transcripts", tmp_path, tokenizer, form, **options)[:2]
    assert spelled(asr.rows, form, tokenizer) == f"Write: <35>{SENTENCE}|"
    assert spelled(tts.rows, form, tokenizer) == f"Say: {SENTENCE}<35>|"
    answers = [[r for r, m in zip(d.rows, d.loss_mask, strict=True) if m] for d in (asr, tts)]
    assert [spelled(rows, form, tokenizer) for rows in answers] == [f"{SENTENCE}|", "<35>|"]


def test_shares_that_sum_to_one_give_each_utterance_one_shape(tmp_path, tokenizer, form):
    builder = BUILDERS["transcripts"](tokenizer, form, OPTIONS["transcripts"] | {"asr": 0.6, "tts": 0.4})
    found = [Utterance(tmp_path / f"{i}.wav", text="a b") for i in range(300)]
    builder.add_speech(tmp_path, found, EncodedUtterances([[1, 2]] * 300, []))
    names = [d.id.split("/") for d in builder.documents(tmp_path)]
    assert len(names) == len({name for name, _ in names}) == 300
    assert 0.5 < sum(shape == "asr" for _, shape in names) / 300 < 0.7


def test_spans_of_words_by_turns_lose_neither_word_nor_code(tmp_path, tokenizer, form):
    spans = {"min_words": 1, "max_words": 3}
    (document,) = made("interleaved", tmp_path, tokenizer, form, spans=spans, speech_text=True)
    rows, V = document.rows, form.text_vocab_size
    text = spelled(rows, form, tokenizer)
    assert text.count("<") > 6  # several stretches an utterance
    # What is spoken and what is written are, together and in order, the text of all utterances.
    at_row = {first: (stop, ids) for first, stop, ids in document.speech_text}
    whole, i = [], 0
    while i < len(rows):
        if i in at_row:
            stop, ids = at_row[i]
            word = tokenizer.decode(ids).strip()
            number = WORDS.index(word)
            assert rows[i:stop] == [V + 4 * number % CODES] * 5  # exactly its own codes
            whole.append(word)
            i = stop
            continue
        if rows[i] < V and rows[i] not in (form.sosp_token_id, form.end_id):
            end = next(j for j in range(i, len(rows)) if rows[j] in (form.sosp_token_id, form.end_id))
            whole += tokenizer.decode(rows[i:end]).split()
            i = end
            continue
        i += 1
    assert whole == WORDS * 6


def test_spans_alternate_and_have_codes_of_their_own():
    rng = np.random.default_rng(0)
    words = [("w", 0.03 * i, 0.03 * (i + 1)) for i in range(40)]  # 2.7 words a code
    for _ in range(20):
        found = spans_by_turns(words, 15, rng, WordSpans(1, 2))
        assert [s.first for s, _ in found][1:] == [s.stop for s, _ in found][:-1]
        assert (found[0][0].first, found[-1][0].stop, found[-1][0].code_stop) == (0, 40, 15)
        assert all(s.code_stop > s.code_first for s, _ in found)
        assert all(a != b for (_, a), (_, b) in pairwise(found))


@pytest.mark.parametrize("kind", ["interleaved", "unsupervised", "sft", "transcripts"])
@pytest.mark.parametrize("timed", [True, False])
def test_text_lies_at_codes_and_is_what_they_say(tmp_path, tokenizer, form, kind, timed):
    documents = made(kind, tmp_path, tokenizer, form, timed, speech_text=True)
    stretches = 0
    for document in documents:
        said, V = document.speech_text, form.text_vocab_size
        for first, stop, _ in said:
            assert all(V <= row < form.eosp_row for row in document.rows[first:stop])
        texts = "".join(tokenizer.decode(ids) for *_, ids in said)
        codes = sum(V <= row < form.eosp_row for row in document.rows)
        assert sum(stop - first for first, stop, _ in said) == codes
        assert texts.replace(" ", "").count(SENTENCE.replace(" ", "")) == round(codes / 35)
        stretches += len(said)
        if timed and kind in ("unsupervised", "transcripts"):  # word by word
            assert len(said) == 7 * round(codes / 35)
    assert stretches


def test_options_that_are_off_leave_the_record_of_documents_as_it_was():
    assert _recorded_options("interleaved", _checked_options("interleaved", {})) == {
        "speech_share": 0.5,
        "alternate": False,
        "document_sec": 60.0,
        "seed": 1,
    }
    assert _recorded_options("unsupervised", _checked_options("unsupervised", {})) == {"document_sec": 60.0}
    sft = _recorded_options("sft", _checked_options("sft", {}))
    assert set(sft) == {"pairs", "train_on"}
    on = _recorded_options("sft", _checked_options("sft", {"speech_text": True}))
    assert on == sft | {"speech_text": True}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("interleaved", {"spans": {"min_words": 3, "max_words": 2}}, "min_words 3 and max_words 2"),
        ("interleaved", {"spans": {"words": 3}}, "expected min_words and max_words"),
        ("transcripts", {"asr": 0.0, "tts": 0.0}, "not both 0"),
        ("transcripts", {"train_on": "assistant"}, "expected answer or all"),
        ("sft", {"train_on": "answer"}, "expected assistant or all"),
    ],
)
def test_mistakes_are_named(kind, options, message):
    with pytest.raises(UserError, match=message):
        _checked_options(kind, options)


# --- folders and batches ------------------------------------------------------------------------------------


def write(folder, form, documents, speech_text=True, kind="transcripts"):
    meta = {"kind": kind, "options": {"speech_text": True} if speech_text else {}, "text_tokenizer": "t",
            "speech_tokenizer": "s", "format": form.to_dict()}  # fmt: skip
    with DocumentWriter(folder, meta, shard_rows=50) as writer:
        for i, (rows, said) in enumerate(documents):
            writer.add(f"d{i}", rows, None, kind, speech_text=said)
    return folder


def some_documents(form, count=8):
    V = form.text_vocab_size
    return [
        ([form.sosp_token_id, *(V + i for _ in range(10)), form.eosp_row, 5 + i, 6, form.end_id],
         [(1, 6, [5 + i]), (6, 11, [6])])
        for i in range(count)
    ]  # fmt: skip


def test_a_folder_gives_back_what_was_written_and_its_fingerprint_says_so(tmp_path, form):
    documents = some_documents(form)
    found = read_documents(write(tmp_path / "a", form, documents))
    assert [found.speech_text(i) for i in range(8)] == [said for _, said in documents]
    assert found.spoken_ids().tolist() == list(range(5, 13))
    # Off, a folder is what it was before the option.
    off = read_documents(write(tmp_path / "b", form, documents, False))
    plain = read_documents(write(tmp_path / "c", form, [(rows, None) for rows, _ in documents], False))
    assert off.fingerprint == plain.fingerprint != found.fingerprint
    assert off.speech_text(0) == [] == off.spoken_ids().tolist()
    with pytest.raises(ValueError, match="text of rows 3 to 99 of 15"):
        write(tmp_path / "d", form, [(documents[0][0], [(3, 99, [1])])])


def ready(kind, folder, **options):
    data = kind(train=[str(folder)], context=40, batch_size=2, heldout_items=0, seed=1, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_batches_carry_the_text_only_where_it_is_asked_for(tmp_path, form):
    folder = write(tmp_path / "a", form, some_documents(form))
    batch = next(iter(ready(TranscriptDataModule, folder, speech_text=True).train_dataloader()))
    assert len(batch.speech_text) == len(batch.ids)
    for said in batch.speech_text:
        assert isinstance(said, SpeechText)
        rows = batch.rows_BL[said.sequence, said.first : said.stop]
        assert rows.tolist() == [form.text_vocab_size + said.ids[0] - 5] * 10
    off = next(iter(ready(TranscriptDataModule, folder).train_dataloader()))
    assert off.speech_text == []
    assert torch.equal(off.rows_BL, batch.rows_BL)


def test_text_that_a_cut_goes_through_is_left_out(tmp_path, form):
    folder = write(tmp_path / "a", form, some_documents(form, 1), kind="interleaved")
    data = InterleavedDataModule(
        train=[str(folder)], context=8, heldout_items=0, speech_text=True, min_fill=0
    )
    data.prepare_data()
    data.setup("fit")
    pieces = [p for i in range(len(data.sources[0].packs)) for p in data.training_set()[0, i]]
    assert {name: said for name, *_, said in pieces} == {"d0": [(1, 6, [5])], "d0+7": []}


def test_pairs_of_codes_and_text(tmp_path, form):
    data = ready(TranscriptDataModule, write(tmp_path / "a", form, some_documents(form, 3)), speech_text=True)
    codes, ids = data.aligned_codes()
    assert codes.tolist() == [i for i in range(3) for _ in range(10)]
    assert ids.tolist() == [x for i in range(3) for x in [5 + i] * 5 + [6] * 5]
    assert data.spoken_ids().tolist() == [5, 6, 7]


def test_what_is_missing_is_named(tmp_path, form):
    folder = write(tmp_path / "a", form, some_documents(form), False)
    with pytest.raises(UserError, match="does not carry the text of its speech"):
        ready(TranscriptDataModule, folder, speech_text=True)
    with pytest.raises(UserError, match=r"speech_tokenizer is not set, but model\.init_codes needs"):
        ready(TranscriptDataModule, folder).codebook()
    with pytest.raises(UserError, match="asr_items -1, expected 0 or more"):
        TranscriptDataModule(asr_items=-1)


def test_a_mixtures_parts_take_its_speech_text():
    parts = [TextDataModule(train=["y"]), TranscriptDataModule(train=["x"], asr_prompt="Write: ")]
    mixture = MixtureDataModule(parts, speech_text=True)
    assert all(part.speech_text for part in parts)
    assert mixture.asr_prompt == "Write: "


def test_short_documents_come_first_and_a_resume_continues(tmp_path, form):
    V = form.text_vocab_size
    rng = np.random.default_rng(0)
    documents = [([form.sosp_token_id, *[V] * int(n), form.eosp_row, form.end_id], [])
                 for n in rng.integers(5, 36, 60)]  # fmt: skip
    folder = write(tmp_path / "a", form, documents, False)
    data = ready(TranscriptDataModule, folder, short_first_batches=8)
    loader = iter(data.train_dataloader())
    batches = [next(loader) for _ in range(12)]
    means = [np.mean(batch.lengths) for batch in batches]
    assert means[:8] == sorted(means[:8])
    assert max(means[:8]) <= min(means[8:])
    resumed = ready(TranscriptDataModule, folder, short_first_batches=8)
    data.advance(5)
    resumed.load_state_dict(data.state_dict())
    assert next(iter(resumed.train_dataloader())).ids == batches[5].ids
    with pytest.raises(UserError, match="trained on other order"):
        ready(TranscriptDataModule, folder).load_state_dict(data.state_dict())
