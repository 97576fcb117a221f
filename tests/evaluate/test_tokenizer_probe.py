"""`evaluate tokenizer_probe`: learns what codes say, nothing from exchanged ones; kills, files, mistakes."""

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.evaluate import probe_training, tokenizer_probe
from lit_moss.evaluate.probe_codes import entropy_bits, exchanged, open_codes
from lit_moss.evaluate.probe_training import Probe, ProbeOptions, Spoken, batches, packed, said

WORDS = ("cat", "dog", "owl", "bee", "ant", "fox")


@pytest.fixture
def lists(tmp_path, monkeypatch) -> Path:
    """Manifests without sound, and a file whose codes say the one word of each utterance."""
    monkeypatch.chdir(tmp_path)
    lines = [{"frame_rate_hz": 25, "num_codes": 8}]
    number = 0
    for name, count in (("train", 48), ("dev", 12), ("clean", 12), ("other", 6)):
        rows = []
        for _ in range(count):
            code = number % len(WORDS)
            rows.append(
                {"audio_filepath": f"u{number}.wav", "duration": 1.0, "text": WORDS[code].title() + "!"}
            )
            lines.append({"id": f"u{number}", "codes": [code] * (2 + number % 3)})
            number += 1
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "codes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


KEYS = (
    "--train=[train.jsonl]", "--dev=dev.jsonl", "--test=[clean.jsonl,other.jsonl]", "--probe_from=random",
    "--layers=2", "--width=64", "--steps=60", "--batch_rows=256", "--lr=3e-3", "--eval_every=20",
    "--bf16=false",
)  # fmt: skip


def evaluate(*words: str) -> dict[str, float]:
    assert main(["evaluate", "tokenizer_probe", *KEYS, *words]) == 0
    (result,) = Path("runs/tokenizer_probe").glob("*/result.json")
    return json.loads(result.read_text())


@pytest.mark.nightly
def test_codes_that_say_the_words_are_learnt_and_exchanged_ones_are_not(lists, capsys):
    metrics = evaluate("--codes=[codes.jsonl,shuffled:codes.jsonl]")
    for name in ("dev", "clean", "other"):
        assert metrics[f"codes.jsonl/{name}_wer"] == 0
    assert metrics["shuffled_codes.jsonl/clean_wer"] > 0.5
    assert metrics["codes.jsonl/bits_per_second"] == pytest.approx(75)
    shares = [1 / 9, 1 / 6, 2 / 9] * 2  # lengths 2, 3 and 4 of two words each
    entropy = -sum(share * math.log2(share) for share in shares)
    assert metrics["codes.jsonl/entropy_bits_per_second"] == pytest.approx(25 * entropy, rel=1e-6)
    assert metrics["failures"] == 0
    report = capsys.readouterr().out
    assert "| codes.jsonl | 25.000 | 8 | 75.000 |" in report
    (folder,) = Path("runs/tokenizer_probe").iterdir()
    assert (folder / "dev_wer.png").exists()
    assert not (folder / "probes").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("ctc", [0.0, 0.5])
def test_a_killed_probe_ends_as_one_that_was_not(lists, monkeypatch, ctc):
    whole = evaluate("--codes=[codes.jsonl]", f"--ctc={ctc}")
    (folder,) = Path("runs/tokenizer_probe").iterdir()
    items = (folder / "items.jsonl").read_text()
    steps = probe_training._train_step
    for kill_at in (25, 50):  # after an evaluation and a few steps

        def dies(*args, kill_at=kill_at):
            if args[-1] == kill_at:
                raise KeyboardInterrupt
            return steps(*args)

        monkeypatch.setattr(probe_training, "_train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            tokenizer_probe.run(_config(run_root="killed", ctc=ctc))
    monkeypatch.setattr(probe_training, "_train_step", steps)
    assert tokenizer_probe.run(_config(run_root="killed", ctc=ctc)) == whole
    (killed,) = Path("killed/tokenizer_probe").iterdir()
    assert (killed / "items.jsonl").read_text() == items


def _config(**changes) -> tokenizer_probe.Config:
    sizes = {"layers": 2, "width": 64, "steps": 60, "batch_rows": 256, "lr": 3e-3, "eval_every": 20}
    return tokenizer_probe.Config(
        ["train.jsonl"], "dev.jsonl", ["clean.jsonl", "other.jsonl"], ["codes.jsonl"], probe_from="random",
        bf16=False, **sizes, **changes,
    )  # fmt: skip


@pytest.mark.nightly
def test_codes_of_a_speech_tokenizer_and_a_backbone(corpus, tiny_encoder, tmp_path, monkeypatch):
    from backbones import folder_of
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from lit_moss.codec import SpeechTokenizer

    monkeypatch.chdir(tmp_path)
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "tokenizer")
    folder_of(tmp_path / "backbone", "llama", vocab_size=40)
    letters = Tokenizer(models.WordLevel({c: i for i, c in enumerate("?abcdefghijklmnopqrstuvwxyz' ")}, "?"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<|endoftext|>").save_pretrained(
        tmp_path / "backbone"
    )
    keys = [f"--train=[{corpus / 'train.jsonl'}]", f"--dev={corpus / 'validation.jsonl'}",
            f"--test=[{corpus / 'validation.jsonl'}]", f"--codes=[{tmp_path / 'tokenizer'}]", "--steps=2",
            f"--probe_from={tmp_path / 'backbone'}", "--batch_rows=400", "--bf16=false"]  # fmt: skip
    assert main(["evaluate", "tokenizer_probe", *keys]) == 0
    (result,) = tmp_path.glob("runs/tokenizer_probe/*/result.json")
    metrics = json.loads(result.read_text())
    assert sum(name.endswith("validation_wer") for name in metrics) == 1
    assert [v for k, v in metrics.items() if k.endswith("/bits_per_second")] == [pytest.approx(12.5 * 8)]


def test_batches_follow_from_seed_and_hold_every_document_once_an_epoch():
    lengths = [30, 50, 20, 60, 40, 10]
    first = list(islice(batches(lengths, 100, seed=1), 12))
    assert first == list(islice(batches(lengths, 100, seed=1), 12))
    assert first != list(islice(batches(lengths, 100, seed=2), 12))
    assert all(sum(lengths[i] for i in batch) <= 100 for batch in first)
    count, epoch = 0, []
    while count < len(lengths):
        epoch += first.pop(0)
        count = len(epoch)
    assert sorted(epoch) == list(range(6))


def test_only_texts_are_targets():
    rows, numbers, mask = packed([([9, 10, 11], [1, 2]), ([9, 11], [3])])
    assert rows.tolist() == [[9, 10, 11, 1, 2, 9, 11, 3]]
    assert numbers.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]
    assert rows[mask].tolist() == [1, 2, 3]


def test_ctc_reads_the_codes_and_says_the_text():
    """Of two packed documents: the rows of their codes, and their text without its end."""
    spans = said([([90, 1, 2, 3, 91], [7, 8, 99]), ([90, 4, 5, 91], [6, 99])])
    assert [(s.sequence, s.first, s.stop, s.ids) for s in spans] == [(0, 1, 4, [7, 8]), (0, 9, 11, [6])]
    rows, *_ = packed([([90, 1, 2, 3, 91], [7, 8, 99]), ([90, 4, 5, 91], [6, 99])])
    assert [rows[0, s.first : s.stop].tolist() for s in spans] == [[1, 2, 3], [4, 5]]


def test_ctc_has_four_frames_a_code_where_texts_are_characters():
    """English has 14 characters a second and 12.5 codes: with one frame a code none would fit."""
    train = [Spoken([1, 2], "abcdef")]
    options = ProbeOptions("random", 1, 64, 1, 64, 1e-3, 1, 1, "en", 1, "cpu", False, ctc=0.5)
    probe = Probe.open(options, 8, train)
    documents = [(probe.prompt(train[0]), probe.target(train[0]))]
    losses = probe.lm.loss(*packed(documents))
    sums = probe.ctc_head(losses.hidden_BLD, said(documents))
    assert (sums.labels, sums.skipped) == (6, 0)
    sums.mean.backward()
    assert any(p.grad is not None and p.grad.any() for p in probe.lm.trunk.parameters())
    plain = Probe.open(replace(options, ctc=0.0), 8, train)
    ours, theirs = probe.lm.state_dict(), plain.lm.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)  # the same start


def test_exchanged_codes_are_those_of_others():
    codes = [[i] * 3 for i in range(9)] + [[]]
    moved = exchanged(codes, seed=3)
    assert sorted(moved) == sorted(codes)
    assert moved[9] == []
    assert not any(a == b for a, b in zip(moved[:9], codes[:9], strict=True))
    assert exchanged([[1], []], seed=0) == [[], []]


def test_entropy():
    assert entropy_bits([[0, 1], [2, 3]]) == 2
    assert entropy_bits([[0, 0, 0, 1]]) == pytest.approx(0.8113, abs=1e-4)
    assert entropy_bits([]) == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "a", "codes": [1]}'], "the first line of .*frame_rate_hz"),
        (['{"frame_rate_hz": 50, "num_codes": 4}', '{"id": "a", "codes": [4]}'], r"codes .* from 0 to 3"),
        (['{"frame_rate_hz": 50, "num_codes": 4}', '{"codes": [1]}'], "id .* expected the name"),
    ],
)
def test_files_of_codes_are_checked(tmp_path, lines, message):
    (tmp_path / "codes.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        open_codes(str(tmp_path / "codes.jsonl"))


def test_codes_as_tokenize_writes_them_are_found_by_path(tmp_path):
    from lit_moss.corpora.manifest import Utterance

    lines = [{"frame_rate_hz": 12.5, "num_codes": 4}, {"audio_filepath": "/a/x.wav", "codes": [1, 2]},
             {"audio_filepath": "/a/x.wav", "offset": 1.5, "codes": [3]}]  # fmt: skip
    (tmp_path / "codes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_codes(str(tmp_path / "codes.jsonl"))
    found = source.codes(
        [Utterance(Path("/a/x.wav"), 1.5), Utterance(Path("/a/x.wav")), Utterance(Path("/b/y.wav"))]
    )
    assert found == [[3], [1, 2], []]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--codes=[none.jsonl]"], "no file of codes none.jsonl"),
        (["--codes=[codes.jsonl,codes.jsonl]"], "expected each kind once"),
        (["--codes=[codes.jsonl]", "--test=[]"], "test is empty"),
        (["--codes=[codes.jsonl]", "--steps=0"], "steps is 0, expected 1 or more"),
        (["--codes=[codes.jsonl]", "--ctc=-1"], "ctc is -1.0, expected 0 (off) or more"),
        (["--codes=[codes.jsonl]", "--width=100"], "width is 100, expected a multiple of 64"),
        (["--codes=[codes.jsonl]", "--batch_rows=3"], "none of the 48 utterances to learn from fits"),
        (["--codes=[codes.jsonl]", "--dev=none.jsonl"], "no manifest none.jsonl"),
    ],
)
def test_mistakes_are_one_line(lists, capsys, words, message):
    assert main(["evaluate", "tokenizer_probe", *KEYS, *words]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_lists_of_the_same_name_get_their_folders():
    assert tokenizer_probe._names(["a/test.jsonl", "b/test.jsonl"]) == ["a/test", "b/test"]
    assert tokenizer_probe._names(["clean.jsonl", "other.jsonl"]) == ["clean", "other"]
    with pytest.raises(UserError, match="different names"):
        tokenizer_probe._names(["x/a/t.jsonl", "y/a/t.jsonl"])


def test_characters_are_read_back():
    texts = probe_training.Characters(["a cat", "do"])
    form = texts.row_format(10)
    assert texts.decode([*texts.encode("do zat"), form.end_id, form.sosp_token_id]) == "do at"
    assert form.text_vocab_size == len(set("a catdo")) + 3
    assert torch.tensor(form.speech([0, 9])).max() == form.eosp_row
