"""`evaluate cloze`: scores in closed form, every format of pairs, kills, mistakes."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from spoken_model import spoken_model
from talker import wave

from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.codec import SpeechTokenizer
from lit_moss.errors import UserError
from lit_moss.evaluate import cloze
from lit_moss.evaluate.cloze import Config
from lit_moss.evaluate.cloze_scorer import Scorer
from lit_moss.evaluate.cloze_sets import format_of, read_pairs, set_name
from lit_moss.evaluate.row_scores import packs, score_rows
from lit_moss.llm import SplitLM


def give_fixed_distributions(lm: SplitLM) -> dict[str, torch.Tensor]:
    """Makes both heads predict the same row probabilities wherever they stand: logits that are drawn once.

    Returns:
        Name of the head -> log-probabilities of its ids.
    """
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in lm.blocks():
            for layer in block.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
        lm.model.embed_tokens.weight.fill_(1.0)
        lm.model.audio_embed.weight.fill_(1.0)
        log_probs = {}
        for branch in lm.branches:
            logits = torch.randn(branch.head.out_features, generator=g)
            branch.norm.weight.fill_(1.0)
            width = branch.head.in_features  # the normed vector is all ones
            branch.head.weight.copy_(logits[:, None].expand(-1, width) / width)
            log_probs[branch.name] = logits.log_softmax(0)
    return log_probs


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    """Folder of a model with a codec that predicts fixed distributions, and these."""
    folder = spoken_model(tmp_path_factory.mktemp("unigram") / "model")
    lm = SplitLM.from_pretrained(folder)
    log_probs = give_fixed_distributions(lm)
    lm.save_pretrained(folder)
    return folder, log_probs


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    return spoken_model(tmp_path_factory.mktemp("random") / "model")


def sounds(folder: Path, names, seconds=0.5):
    """A sound file of another pitch for each name, each a little longer than the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        io.write(folder / name, wave(seconds + 0.17 * i, 90 + 40 * i), 24_000)
    return folder


def config(model, items, tmp_path, **more) -> Config:
    return Config(str(model), [str(item) for item in items], run_root=str(tmp_path / "runs"), **more)


def speech_log_prob(unigram, *files, eosp=True):
    """Sum and number of the rows of sounds that were joined, in closed form."""
    folder, log_probs = unigram
    joined = torch.cat([io.read(file, 16_000) for file in files])
    codes = SpeechTokenizer.from_pretrained(folder / "codec").encode(joined, 16_000).tolist()
    ids = [*codes, *([SplitLM.from_pretrained(folder).format.eosp_token_id] if eosp else [])]
    return float(log_probs["speech"][ids].double().sum()), len(ids)


def text_log_prob(unigram, text):
    """Sum over the words of a text behind something, in closed form: its tokens are bytes."""
    from lit_moss.llm.backbone import load_text_tokenizer

    ids = load_text_tokenizer(unigram[0]).encode(text, add_special_tokens=False)
    return float(unigram[1]["text"][ids].double().sum())


def only_result(tmp_path, set_name):
    (folder,) = (tmp_path / "runs/cloze").glob("cloze-*")
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    return {line["item"]: line["result"] for line in lines if line["item"].startswith(set_name)}


# --- scores -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("eosp", [True, False])
def test_scores_of_whole_files_have_their_closed_form(unigram, tmp_path, eosp):
    folder = sounds(tmp_path / "tSC", ["0_a.wav", "1_a.wav", "2_b.wav", "3_b.wav"])
    metrics = cloze.run(config(unigram[0], [folder], tmp_path, count_eosp=eosp))
    files = sorted(folder.iterdir())
    means = []
    for (good, bad), result in zip(
        (files[:2], files[2:]), only_result(tmp_path, "tSC").values(), strict=True
    ):
        for side, file in (("good", good), ("bad", bad)):
            total, rows = speech_log_prob(unigram, file, eosp=eosp)
            assert result[side]["whole"] == pytest.approx(total, abs=1e-4)
            assert result[side]["whole_rows"] == rows
        means.append([result[side]["whole"] / result[side]["whole_rows"] for side in ("good", "bad")])
    right = sum(good > bad for good, bad in means) / 2
    assert metrics["tSC/speech-speech/whole-mean"] == right
    assert metrics["tSC/speech-speech/shorter"] == 1.0  # each true file is the shorter one
    assert metrics["tSC/speech-speech/n"] == 2


@pytest.mark.slow
def test_crossed_items_score_each_modality_with_its_head_and_never_sosp(unigram, tmp_path):
    folder = sounds(tmp_path / "cm", ["7_mutual.wav", "7_correct.wav", "7_incorrect.wav"])
    texts = {"mutual": "it was dark", "correct": "he slept", "incorrect": "a tree ran"}
    for part, text in texts.items():
        (folder / f"7_{part}.txt").write_text(text + "\n")
    cloze.run(config(unigram[0], [folder], tmp_path))
    results = only_result(tmp_path, "cm")
    assert len(results) == 4
    mutual, correct = folder / "7_mutual.wav", folder / "7_correct.wav"
    context_text = text_log_prob(unigram, texts["mutual"][1:])  # nothing precedes its first row
    ending_text = text_log_prob(unigram, " " + texts["correct"])
    context_speech, context_rows = speech_log_prob(unigram, mutual)
    ending_speech, ending_rows = speech_log_prob(unigram, correct)
    text_rows, letters = len(texts["mutual"]) - 1, len(texts["correct"]) + 1
    expected = {
        "text-text": (context_text, ending_text, text_rows, letters),
        "text-speech": (context_text, ending_speech, text_rows, ending_rows),
        "speech-text": (context_speech, ending_text, context_rows, letters),
    }
    for modalities, (context, ending, before, after) in expected.items():
        got = results[f"cm/7/{modalities}"]["good"]
        assert got["ending"] == pytest.approx(ending, abs=1e-4)
        assert got["whole"] == pytest.approx(context + ending, abs=1e-4)
        assert (got["whole_rows"], got["ending_rows"]) == (before + after, after)
    got = results["cm/7/speech-speech"]["good"]  # joined before encoding
    total, rows = speech_log_prob(unigram, mutual, correct)
    assert got["whole"] == pytest.approx(total, abs=1e-4)
    inside_context = len(io.read(mutual, 16_000)) // 1280
    assert (got["whole_rows"], got["ending_rows"]) == (rows, rows - inside_context)


@pytest.mark.slow
def test_joining_codes_and_removing_repetitions_change_rows_as_they_say(unigram, tmp_path):
    folder = sounds(tmp_path / "cm", ["0_mutual.wav", "0_correct.wav", "0_incorrect.wav"])
    cloze.run(config(unigram[0], [folder], tmp_path, join="codes"))
    (result,) = only_result(tmp_path, "cm").values()
    parts = [
        speech_log_prob(unigram, folder / f"0_{p}.wav", eosp=p == "correct") for p in ("mutual", "correct")
    ]
    assert result["good"]["whole"] == pytest.approx(sum(total for total, _ in parts), abs=1e-4)
    assert result["good"]["ending_rows"] == parts[1][1]

    steady = tmp_path / "steady"
    steady.mkdir()
    for name in ("0_a.wav", "1_a.wav"):
        io.write(steady / name, torch.zeros(16_000), 16_000)
    (item,) = cloze.read_items(config(unigram[0], [steady], tmp_path), scorer := Scorer(
        config(unigram[0], [steady], tmp_path, deduplicate=True)
    ))  # fmt: skip
    good, bad = scorer._rows_of(item, scorer._encode([item]))
    assert good.rows == bad.rows
    assert all(a != b for a, b in zip(good.rows, good.rows[1:], strict=False))


@pytest.mark.slow
def test_equal_continuations_are_half_right(unigram, tmp_path):
    path = tmp_path / "same.jsonl"
    path.write_text(json.dumps({"id": 1, "prompt_text": "one", "good_text": "two", "bad_text": "owt"}) + "\n")
    metrics = cloze.run(config(unigram[0], [path], tmp_path))
    # The same letters: only rounding could tell them apart, and the order does not matter to this model.
    assert metrics["same/text-text/ending-sum"] in (0.0, 0.5, 1.0)
    path.write_text(json.dumps({"id": 1, "prompt_text": "one", "good_text": "two", "bad_text": "two"}) + "\n")
    metrics = cloze.run(config(unigram[0], [path], tmp_path))
    for method in ("whole-mean", "ending-sum", "ending-mean", "shorter"):
        assert metrics[f"same/text-text/{method}"] == 0.5


@pytest.mark.slow
def test_length_decides_between_sum_and_mean(unigram, tmp_path):
    """The sum prefers the short ending, the mean does not: the report states what `shorter` would get."""
    letters = {c: text_log_prob(unigram, c) for c in "abcdefghijklmnopqrstuvwxyz"}
    likely, unlikely = max(letters, key=letters.get), min(letters, key=letters.get)
    path = tmp_path / "length.jsonl"
    rows = [{"prompt_text": "so", "good_text": likely * 40, "bad_text": unlikely}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = cloze.run(config(unigram[0], [path], tmp_path))
    assert metrics["length/text-text/ending-mean"] == 1.0
    assert metrics["length/text-text/ending-sum"] == 0.0
    assert metrics["length/text-text/shorter"] == 0.0


@pytest.mark.nightly
def test_results_do_not_depend_on_the_batch(random_model, tmp_path):
    folder = sounds(
        tmp_path / "cm", [f"{i}_{p}.wav" for i in range(3) for p in ("mutual", "correct", "incorrect")], 0.3
    )
    for i in range(3):
        for part in ("mutual", "correct", "incorrect"):
            (folder / f"{i}_{part}.txt").write_text(f"words of {part} number {i}" + " and more" * i)
    found = []
    for batch_size in (1, 5, 12):
        cloze.run(config(random_model, [folder], tmp_path, batch_size=batch_size, again=True))
        found.append(only_result(tmp_path, "cm"))
    for other in found[1:]:
        assert list(other) == list(found[0])
        for name, result in found[0].items():
            for side in ("good", "bad"):
                assert other[name][side] == pytest.approx(result[side], abs=2e-4)


def test_rows_in_packs_score_as_alone_and_as_the_loss(random_model):
    lm = SplitLM.from_pretrained(random_model)
    g = torch.Generator().manual_seed(0)
    sequences = [
        [*torch.randint(0, 200, (3 + i,), generator=g).tolist(), *lm.format.speech([1, 2, i])]
        for i in range(5)
    ]
    wanted = [[(i, row) for i, row in enumerate(rows) if i] for rows in sequences]
    alone = score_rows(lm, sequences, wanted, pack_rows=1)
    together = score_rows(lm, sequences, wanted, pack_rows=17)
    for rows, a, b in zip(sequences, alone, together, strict=True):
        nll = lm.loss(torch.tensor(rows)[None]).nll_BL[0, 1:]
        assert torch.tensor(a.log_probs) == pytest.approx(-nll, abs=1e-5)
        assert torch.tensor(b.log_probs) == pytest.approx(-nll, abs=1e-5)
    assert list(packs([3, 3, 9, 1], 6)) == [[0, 1], [2], [3]]


def test_masking_takes_probabilities_among_one_modality_of_a_joint_model(random_model):
    from lit_moss.llm.backbone import load_text_tokenizer, row_format

    tokenizer = load_text_tokenizer(random_model)
    torch.manual_seed(1)
    backbone = random_model.parent / "backbone"
    lm = SplitLM.from_backbone(backbone, 0, 128, joint=True, row_format=row_format(tokenizer, 128, eosp=32))
    lm.eval()
    rows = [5, 6, *lm.format.speech([3, 4])]
    scorer = Scorer(Config("m", ["x"], mask_other=True))
    scorer.__dict__["model"] = type("Model", (), {"lm": lm})
    wanted = [(1, rows[1]), (4, rows[4])]
    (masked,) = score_rows(lm, [rows], [wanted], scorer._allowed)
    with torch.no_grad():
        logits = lm(torch.tensor(rows)[None])
    expected = [logits.text_logits[0, 0].log_softmax(-1)[6], logits.speech_logits[0, 3].log_softmax(-1)[4]]
    assert masked.log_probs == pytest.approx([float(x) for x in expected], abs=1e-5)
    (plain,) = score_rows(lm, [rows], [wanted])
    assert all(p < m for p, m in zip(plain.log_probs, masked.log_probs, strict=True))


# --- formats ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gold_pairs_are_those_of_id_and_voice_and_voices_are_averaged_first(unigram, tmp_path):
    folder = sounds(tmp_path / "syntactic/dev", [f"{c}.wav" for c in "abcdef"])
    lines = ["filename,id,voice,type,transcription,correct"]
    for name, number, voice, correct in (
        ("a", 10, "v1", 1), ("b", 10, "v1", 0), ("d", 10, "v2", 1), ("c", 10, "v2", 0), ("e", 2, "v1", 0),
        ("f", 2, "v1", 1),
    ):  # fmt: skip
        lines.append(f"{name},{number},{voice},{'agree' if number == 2 else 'bind'},words {name},{correct}")
    (folder / "gold.csv").write_text("\r\n".join(lines) + "\r\n")
    assert format_of(str(folder)) == "gold"
    (one,) = read_pairs(str(folder), "gold")
    assert one.name == "syntactic-dev"
    assert [(p.id, p.key, p.good.audio.name, p.group) for p in one.pairs] == [
        ("2-v1", "2", "f.wav", "agree"), ("10-v1", "10", "a.wav", "bind"), ("10-v2", "10", "d.wav", "bind"),
    ]  # fmt: skip
    assert len(one.first(1).pairs) == 1
    metrics = cloze.run(config(unigram[0], [folder], tmp_path, modalities=["speech-speech"]))
    results = only_result(tmp_path, "syntactic-dev")
    right = {}
    for name, result in results.items():
        means = [result[side]["whole"] / result[side]["whole_rows"] for side in ("good", "bad")]
        right[name.split("/")[1]] = float(means[0] > means[1])
    expected = (right["2-v1"] + (right["10-v1"] + right["10-v2"]) / 2) / 2
    assert metrics["syntactic-dev/speech-speech/whole-mean"] == expected
    assert metrics["syntactic-dev/speech-speech/n"] == 2


def test_other_formats_are_found_by_their_names(tmp_path):
    salmon = tmp_path / "salmon"
    sounds(salmon / "gender", ["sample_0_0.wav", "sample_0_1.wav", "sample_10_1.wav", "sample_10_0.wav"], 0.1)
    sounds(salmon / "room", ["sample_0_0.wav", "sample_0_1.wav"], 0.1)
    assert format_of(str(salmon)) == "salmon"
    sets = read_pairs(str(salmon), "salmon")
    assert [one.name for one in sets] == ["salmon-gender", "salmon-room"]
    assert [p.good.audio.name for p in sets[0].pairs] == ["sample_0_0.wav", "sample_10_0.wav"]
    numbered = sounds(tmp_path / "sSC", ["10_x.wav", "11_x.wav", "2_x.wav", "3_x.wav"], 0.1)
    assert format_of(str(numbered)) == "numbered"
    (one,) = read_pairs(str(numbered), "numbered")
    assert [(p.good.audio.name, p.bad.audio.name) for p in one.pairs] == [
        ("2_x.wav", "3_x.wav"), ("10_x.wav", "11_x.wav")
    ]  # fmt: skip
    story = {f"input_sentence_{i}": f"句子{i}。" for i in range(1, 5)}
    story |= {"sentence_quiz1": "错。", "sentence_quiz2": "对。", "answer_right_ending": 2, "story_id": "s"}
    (tmp_path / "zh.jsonl").write_text(json.dumps(story, ensure_ascii=False) + "\n", encoding="utf-8")
    assert format_of(str(tmp_path / "zh.jsonl")) == "xstorycloze"
    (one,) = read_pairs(str(tmp_path / "zh.jsonl"), "xstorycloze")
    (pair,) = one.pairs
    assert (pair.good.text, pair.bad.text) == ("对。", "错。")
    assert pair.prompt.text == "句子1。句子2。句子3。句子4。"
    assert one.modalities() == ["text-text"]
    assert format_of("embedded:everyday-en") == "documents"
    assert set_name("embedded:everyday-en") == "everyday-en"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0_good.wav", "0_bad.wav"], "have the same number"),
        (["0_a.wav", "1_a.wav", "2_b.wav"], "holds 3 sound files, an odd number"),
        (["a_0.wav", "b_1.wav"], "has no number before the first _"),
        (["0_a.wav", "2_a.wav"], "a number is missing"),
        (["0_a.wav", "1_a.wav", "3_b.wav", "4_b.wav"], "a number is missing"),
        (["sample_0_0.wav", "sample_0_2.wav"], "expected sample_0_0.wav and sample_0_1.wav"),
        (["3_mutual.wav", "3_correct.wav"], "has neither 3_incorrect.wav nor 3_incorrect.txt"),
    ],
)
def test_folders_that_leave_the_pairs_open_are_refused(tmp_path, names, message):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(UserError, match=message):
        read_pairs(str(folder), format_of(str(folder)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "good": "a.wav"}', "expected good and bad, or good_text and bad_text"),
        ('{"good_text": 3, "bad_text": "x"}', "good_text is 3, expected a string"),
        ('{"say": "a"}', "keys say, expected audio_filepath"),
    ],
)
def test_mistakes_in_a_manifest_name_the_line(tmp_path, line, message):
    (tmp_path / "m.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="line 1") as error:
        read_pairs(str(tmp_path / "m.jsonl"), format_of(str(tmp_path / "m.jsonl")))
    assert message in str(error.value)


def test_a_gold_file_without_its_columns_or_a_side_is_refused(tmp_path):
    (tmp_path / "gold.csv").write_text("filename,id\na,1\n")
    with pytest.raises(UserError, match="has no column correct, voice"):
        read_pairs(str(tmp_path), "gold")
    (tmp_path / "gold.csv").write_text("filename,id,voice,correct\na,1,v,1\n")
    with pytest.raises(UserError, match="id 1, voice v has correct 1"):
        read_pairs(str(tmp_path), "gold")


# --- whole runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path):
    """Four pairs with everything, of which one names a file that is no sound."""
    sounds(tmp_path / "wav", ["p.wav", "g.wav", "b.wav"], 0.2)
    (tmp_path / "wav/broken.wav").write_bytes(b"no sound")
    lines = []
    for i in range(4):
        line = {"id": f"s{i}", "prompt": "wav/p.wav", "good": "wav/g.wav", "bad": "wav/b.wav"}
        if i == 2:
            line["bad"] = "wav/broken.wav"
        line |= {"prompt_text": "so it was", "good_text": f"well {i}", "bad_text": "unheard"}
        lines.append(json.dumps(line))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "pairs.jsonl"


@pytest.mark.slow
def test_a_pair_that_fails_counts_as_wrong_and_is_named(unigram, tmp_path, manifest, capsys):
    metrics = cloze.run(config(unigram[0], [manifest], tmp_path, modalities=["speech-speech", "speech-text"]))
    assert metrics["pairs/speech-speech/failed"] == 1
    assert metrics["pairs/speech-text/failed"] == 0
    others = metrics["pairs/speech-speech/ending-sum"] * 4
    assert others in (0.0, 3.0)  # three equal pairs
    captured = capsys.readouterr()
    assert "pairs/s2/speech-speech" in captured.err
    assert "- pairs/s2/speech-speech: " in captured.out
    (folder,) = (tmp_path / "runs/cloze").glob("cloze-*")
    rows = list(csv.DictReader((folder / "items.csv").open()))
    assert [row["item"] for row in rows if row["failed"]] == ["s2"]
    assert (folder / "margins.png").stat().st_size > 0


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(random_model, tmp_path, manifest, monkeypatch):
    whole = cloze.run(config(random_model, [manifest], tmp_path / "whole", batch_size=3))
    calls = []

    class Dies(Scorer):
        def __call__(self, items):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(len(items))
            return super().__call__(items)

    with monkeypatch.context() as patch:
        patch.setattr(cloze, "Scorer", Dies)
        with pytest.raises(KeyboardInterrupt):
            cloze.run(config(random_model, [manifest], tmp_path, batch_size=3))
    resumed = cloze.run(config(random_model, [manifest], tmp_path, batch_size=3))
    assert resumed == whole


@pytest.mark.nightly
def test_a_comparison_pairs_the_items_of_two_models_without_scoring_again(
    unigram, random_model, tmp_path, manifest, capsys, monkeypatch
):
    cloze.run(config(unigram[0], [manifest], tmp_path))
    (other,) = (tmp_path / "runs/cloze").glob("cloze-*")
    cloze.run(config(random_model, [manifest], tmp_path))
    capsys.readouterr()
    monkeypatch.setattr(Scorer, "__call__", None)  # would fail if it was called
    cloze.run(config(random_model, [manifest], tmp_path, against=str(other), score="ending-sum"))
    text = capsys.readouterr().out
    assert f"## Against {other} (ending-sum)" in text
    assert "| pairs | text-speech | 4 |" in text
    with pytest.raises(UserError, match="expected the folder of a cloze evaluation"):
        cloze.run(config(random_model, [manifest], tmp_path, against=str(tmp_path)))


@pytest.mark.slow
def test_items_made_from_a_corpus(random_model, tmp_path):
    text = tmp_path / "stories.txt"
    text.write_text("\n".join(f"Sentence number {i} of this story." for i in range(12)) + "\n")
    metrics = cloze.run(config(random_model, [text], tmp_path, speech_tokenizer="none", limit=5))
    assert metrics["stories/text-text/n"] == 5
    assert metrics["stories/text-text/ppl"] > 1


@pytest.mark.slow
def test_the_text_of_a_backbone_is_that_of_its_split_model_before_training(random_model, tmp_path):
    text = tmp_path / "stories.txt"
    text.write_text("\n".join(f"Sentence number {i} of this story." for i in range(12)) + "\n")
    settings = {"limit": 3, "speech_tokenizer": "none"}
    cloze.run(config(random_model, [text], tmp_path, **settings))
    first = only_result(tmp_path, "stories")
    cloze.run(config(random_model.parent / "backbone", [text], tmp_path / "other", limit=3))
    second = only_result(tmp_path / "other", "stories")
    assert list(first) == list(second)
    for name, result in first.items():
        for side in ("good", "bad"):
            assert second[name][side]["whole_rows"] == result[side]["whole_rows"]
            assert second[name][side]["whole"] == pytest.approx(result[side]["whole"], abs=1e-4)


def test_a_speech_tokenizer_trained_further_gives_another_evaluation(random_model, tmp_path, monkeypatch):
    class SeenError(Exception):
        pass

    def record(benchmark, options, sources, again):
        raise SeenError(sources)

    monkeypatch.setattr(cloze, "Evaluation", record)
    with pytest.raises(SeenError) as seen:
        cloze.run(config(random_model, [tmp_path], tmp_path, speech_tokenizer="runs/tokenizer"))
    assert "runs/tokenizer" in seen.value.args[0]


@pytest.mark.slow
def test_the_command_line(unigram, tmp_path, manifest, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(f"model: {unigram[0]}\nitems: [{manifest}]\nmodalities: [text-text]\n")
    assert main(["evaluate", "cloze", "-c", "c.yaml", "--limit", "2"]) == 0
    assert "| pairs | text-text | 2 | 0 |" in capsys.readouterr().out
    for words, message in (
        (["--limit", "0"], "limit is 0, expected 1 or more"),
        (["--items", "[gone.jsonl]"], "no file gone.jsonl"),
        (["--items", "[]"], "items is [], expected"),
        (["--model", "gone"], "gone"),
        (["--score", "sum"], "score is 'sum', expected one of whole-mean, ending-sum, ending-mean"),
    ):
        assert main(["evaluate", "cloze", "-c", "c.yaml", *words]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_perplexity_is_that_of_the_true_continuations(unigram, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"prompt_text": "abc", "good_text": "de", "bad_text": "xy"}) + "\n")
    metrics = cloze.run(config(unigram[0], [path], tmp_path))
    expected = math.exp(-text_log_prob(unigram, "bc de") / 5)
    assert metrics["one/text-text/ppl"] == pytest.approx(expected, rel=1e-5)


def test_stories_have_a_wrong_ending_of_their_own_and_anothers():
    assert format_of("embedded:stories-en") == "stories"
    (one,) = read_pairs("embedded:stories-en", "stories")
    own, other = ([p for p in one.pairs if p.group == group] for group in ("story", "topic"))
    assert len(own) == len(other) == 60
    assert len({p.prompt.text for p in own}) == 60
    endings = {p.good.text for p in own}
    assert {p.bad.text for p in other} == endings
    assert not endings & {p.bad.text for p in own}
    for a, b in zip(own, other, strict=True):
        assert (a.prompt, a.good) == (b.prompt, b.good)
        assert b.bad != b.good
    # Length must not give the true ending away.
    shorter = sum(len(p.good.text) < len(p.bad.text) for p in own)
    longer = sum(len(p.good.text) > len(p.bad.text) for p in own)
    assert abs(shorter - longer) <= 6


@pytest.mark.slow
@pytest.mark.network
def test_texts_without_sound_are_spoken_where_a_voice_is_named(unigram, tmp_path):
    """Needs the embedded voice."""
    file = tmp_path / "pairs.jsonl"
    io.write(tmp_path / "own.wav", wave(1.0, 1), 16000)
    lines = [
        {
            "id": "a",
            "prompt_text": "It was cold.",
            "good_text": "It began to snow.",
            "bad_text": "It was hot.",
        },
        {"id": "b", "prompt_text": "One.", "good_text": "Two.", "bad_text": "…", "good": "own.wav"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    folder, _ = unigram
    config = Config(str(folder), [str(file)], voices=["embedded:hibari"], run_root=str(tmp_path / "runs"))
    items = {item.id: item for item in cloze.read_items(config, Scorer(config))}
    spoken = items["pairs/a/speech-speech"].pair
    parts = (spoken.prompt, spoken.good, spoken.bad)
    assert [part.text for part in parts] == ["It was cold.", "It began to snow.", "It was hot."]
    lengths = [len(io.read(part.audio, 16000)) / 16000 for part in parts]
    assert all(0.3 < seconds < 4 for seconds in lengths)
    assert items["pairs/b/speech-speech"].pair.good.audio == tmp_path / "own.wav"
    metrics = cloze.run(config)
    assert metrics["pairs/speech-speech/n"] == 2
    assert metrics["pairs/speech-speech/failed"] == 1  # … cannot be spoken
    assert metrics["pairs/text-text/failed"] == 0


def test_a_voice_is_not_opened_for_text_alone(unigram, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"id": "a", "good_text": "It began to snow.", "bad_text": "It was hot."}')
    config = Config(
        str(unigram[0]),
        [str(file)],
        voices=["embedded:nobody"],
        modalities=["text-text"],
        run_root=str(tmp_path),
    )
    (item,) = cloze.read_items(config, Scorer(config))
    assert item.pair.good.audio is None
