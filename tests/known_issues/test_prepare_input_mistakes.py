"""Mistakes in options and manifests of `prepare` end in one line and exit code 2, and lose nothing."""

import json

import numpy as np
import pytest
import soundfile

from lit_moss.cli.main import main
from lit_moss.prepare.item_keys import check_item

UTTERANCE = {"audio_filepath": "a.wav", "duration": 1.0, "text": "hello world"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(16_000, np.float32), 16_000)
    return tmp_path


def failing(capsys, *words: str) -> str:
    """The message of a call that the user has to correct."""
    assert main(["prepare", *words, "--track", "false"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def manifest(*items: object) -> str:
    with open("items.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
    return "items.jsonl"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("1: {stage: vad}", "named 1"),
        ('"": {stage: vad}', "named ''"),
        ("../x: {stage: vad}", "named '../x'"),
        ("vad: {stage: [vad]}", "stage is ['vad']"),
        ("vad: {stage: os.path}", "os.path is no stage"),
        ("vad: {input: transcribe}\n  transcribe: {}", "input transcribe is not before it"),
        ("vad: {input: vad}", "input vad is not before it"),
        ("vad.threshold: 0.4", "no step 'vad'"),
        ("vad: {threshold: 0.4}\n  vad:", "the key 'vad' is given twice"),
    ],
)
def test_steps_that_do_not_fit(folder, capsys, steps, message):
    (folder / "chain.yaml").write_text(f"steps:\n  {steps}\n")
    assert message in failing(capsys, "-c", "chain.yaml", "a.wav", "--out", "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "a.wav"), "a.wav is a file"),
        (("--out", "a.wav/below"), "a.wav is a file"),
        (("--out", "out", "--root", "nowhere"), "root is 'nowhere'"),
    ],
)
def test_folders_that_are_none(folder, capsys, words, message):
    before = (folder / "a.wav").read_bytes()
    assert message in failing(capsys, "vad", "a.wav", *words)
    assert (folder / "a.wav").read_bytes() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"duration": "1.0"},
        {"duration": -1},
        {"duration": float("nan")},
        {"offset": "start"},
        {"text": 5},
        {"lang": 5},
        {"id": [1]},
        {"asr_words": "x"},
        {"asr_words": [["hello", 0.1]]},
        {"messages": 5},
        {"messages": ["hello"]},
        {"messages": [{"role": "user", "content": 5}]},
    ],
)
def test_keys_of_other_types_name_line_and_key(folder, capsys, wrong):
    message = failing(capsys, "chunk", manifest(UTTERANCE, UTTERANCE | wrong), "--out", "out")
    assert "items.jsonl, line 2: " in message
    assert next(iter(wrong)) in message
    assert "expected" in message


def test_keys_that_are_missing_or_null_are_no_mistake():
    check_item({}, "x")
    check_item(dict.fromkeys(("text", "duration", "messages", "asr_words", "id")), "x")


def test_a_manifest_without_items_is_a_mistake(folder, capsys):
    assert "no items in" in failing(capsys, "chunk", manifest(), "--out", "out")


def test_a_chain_stops_where_nothing_is_left(folder, capsys):
    (folder / "chain.yaml").write_text("steps:\n  check-transcripts:\n  chunk:\n")
    message = failing(capsys, "-c", "chain.yaml", manifest(UTTERANCE | {"text": ""}), "--out", "out")
    assert "step chunk: no items in" in message
    assert len((folder / "out/check-transcripts/rejected.jsonl").read_text().splitlines()) == 1


def test_an_utterance_of_no_length_is_rejected(folder):
    words = manifest(UTTERANCE | {"duration": 0, "lang": "en", "asr_words": [["hello", 0.1, 0.4, 0.9]]})
    assert main(["prepare", "align", words, "--out", "out", "--track", "false"]) == 0
    assert json.loads((folder / "out/rejected.jsonl").read_text())["reason"] == "no sound"


def test_messages_name_options_as_the_yaml_does(folder, capsys):
    message = failing(capsys, "align", manifest(UTTERANCE), "--out", "out", "--interleave_score", "2")
    assert message == "error: interleave_score is 2.0, expected 0 to 1"
    message = failing(capsys, "tokenize", manifest(UTTERANCE), "--out", "out", "--device", "gpu9")
    assert message.startswith("error: device is 'gpu9', expected auto, cpu")


def test_help_of_a_stage_says_how_it_is_called(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "chunk", "--help"])
    assert ended.value.code == 0
    assert "usage: python -m lit_moss prepare chunk SOURCE … --out DIR" in capsys.readouterr().out
