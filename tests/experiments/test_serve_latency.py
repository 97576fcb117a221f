"""The bench of the time to the first sound: its table, its questions, one run on a tiny model."""

import json
import sys

import pytest
import torch

from experiments.benches import serve_latency
from experiments.benches.serve_latency import Times, listed_questions, summary
from lit_moss.audio import io
from lit_moss.errors import UserError


def times(first_sound: float) -> Times:
    return Times(0.1, 0.02, 0.03, 0.3, 0.05, first_sound, 0.5)


def test_replies_without_sound_are_counted_and_left_out():
    text, values = summary("here", [times(0.5), None, times(0.7)], [0.01, 0.01])
    assert text.startswith("here: 2 of 3 replies have sound")
    assert values["first_sound/p50"] == pytest.approx(600)
    assert values["flow/p50"] == pytest.approx(40)
    with pytest.raises(UserError, match="no reply has sound"):
        summary("here", [None], [])


def test_questions_come_from_a_list_with_paths_beside_it(tmp_path):
    io.write(tmp_path / "a.wav", torch.zeros(16000), 16000)
    (tmp_path / "list.jsonl").write_text('{"question": "Why?", "audio": "a.wav", "answers": ["so"]}\n')
    (question,) = listed_questions(tmp_path / "list.jsonl")
    assert (question.text, len(question.samples_T)) == ("Why?", 24000)
    (tmp_path / "bad.jsonl").write_text('{"question": "Why?"}\n')
    with pytest.raises(UserError, match="line 1: expected question and audio"):
        listed_questions(tmp_path / "bad.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty, expected questions"):
        listed_questions(tmp_path / "empty.jsonl")


@pytest.mark.nightly
@pytest.mark.network
def test_the_bench_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    io.write(tmp_path / "a.wav", 0.1 * torch.randn(16000), 16000)
    (tmp_path / "list.jsonl").write_text('{"question": "Why?", "audio": "a.wav"}\n')
    words = ["--random", "tiny", "--questions", str(tmp_path / "list.jsonl"), "--sessions", "1"]
    words += ["--repeats", "1", "--rows", "20", "--out", str(tmp_path / "out"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["serve_latency", *words])
    serve_latency.main()
    metrics = json.loads((tmp_path / "out/result.json").read_text())
    assert metrics["speech_to_speech/1/first_sound/p50"] > 0
    assert "speech to speech, 1 sessions" in capsys.readouterr().out
    assert "first sound" in (tmp_path / "out/report.md").read_text()
