"""The bench of data preparation: which lines it runs, what it measures, what it leaves alone."""

import json
import os
import sys

import numpy as np
import pytest
import soundfile

from experiments.benches import prepare as bench
from lit_moss.errors import UserError
from lit_moss.prepare.items import resolved_items
from lit_moss.prepare.registry import STAGES


def test_every_stage_is_measured():
    assert {row.stage or row.name for row in bench.ROWS} == set(STAGES)


def test_options_of_all_lines_are_known():
    for row in bench.ROWS:
        bench.step_options(row.name, row.stage or row.name, row.options)


def test_a_line_brings_those_that_it_reads_in_order():
    assert [row.name for row in bench.needed(["chunk"])] == [
        "vad",
        "transcribe",
        "check-transcripts",
        "align",
        "chunk",
    ]
    with pytest.raises(UserError, match="no line loudness"):
        bench.needed(["loudness"])


def test_rates_are_speech_over_time_or_items_where_there_is_no_speech():
    assert bench.Measured("a", 4, 60.0, 1.0, 3.0).rate(3.0) == "20x"
    assert bench.Measured("a", 4, 0.0, 1.0, 2.0).rate(2.0) == "2 items/s"
    assert bench.Measured("a", 4, 60.0, 1.0, 3.0).rate(None) == "–"


def test_the_table_names_the_slowest():
    lines = [
        bench.Measured("fast", 4, 60.0, 1.0, 3.0, 1.5),
        bench.Measured("slow", 4, 60.0, 1.0, 30.0, 20.0),
        bench.Measured("texts", 4, 0.0, 0.0, 99.0),
    ]
    shown = bench.table(lines)
    assert "| fast | 4 | 60 | 1.0 | 3.0 | 20x | 1.5 | 40x |" in shown
    assert shown.endswith("Slowest for each second of speech: slow, 2x.")


def test_hours_follow_from_the_rate_and_one_process_stays_one():
    lines = [
        bench.Measured("a", 4, 640.0, 1.0, 10.0, 5.0),  # 64x
        bench.Measured("whole", 4, 640.0, 0.0, 10.0),
        bench.Measured("texts", 4, 0.0, 0.0, 9.0),
    ]
    rows = bench.hours_table(lines).splitlines()[2:]
    assert rows == [
        "| a | 15.6 | 0.244 h | 1,562 | 1.53 h |",
        "| whole | 15.6 | 15.6 h | 1,562 | 1,562 h |",
    ]


def test_another_cache_of_codes_has_all_but_the_codes(monkeypatch, tmp_path):
    for name in ("codes", "assets"):
        (tmp_path / "cache" / name).mkdir(parents=True)
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    with bench.own_codes(tmp_path / "own"):
        assert os.environ["LIT_MOSS_CACHE"] == str(tmp_path / "own")
        assert [path.name for path in (tmp_path / "own").iterdir()] == ["assets"]
    assert os.environ["LIT_MOSS_CACHE"] == str(tmp_path / "cache")


def test_joined_recordings_hold_all_utterances(tmp_path):
    items = []
    for n in range(30):
        soundfile.write(tmp_path / f"{n}.wav", np.full(64_000, 0.1), 16_000)
        items.append({"audio_filepath": str(tmp_path / f"{n}.wav")})
    recordings = bench.joined(items, 2.0, tmp_path)
    assert len(recordings) == 2
    for recording in recordings:
        wave, _ = soundfile.read(recording["audio_filepath"])
        # Utterances of 4 s with 0.5 s after each, 2 s after each fifth: 13 are over a minute.
        assert recording["duration"] == len(wave) / 16_000 == 13 * 4 + 2 * 2 + 11 * 0.5
        assert (wave > 0.05).sum() == 13 * 64_000


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_the_bench_measures_given_recordings(monkeypatch, capsys, tmp_path, workers):
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 32_000))
    for n, wave in enumerate(noise):
        soundfile.write(tmp_path / f"{n}.wav", wave, 16_000)
    words = ["--only", "vad", "--out", str(tmp_path / "out"), *(["--one-worker"] if workers == 1 else [])]
    monkeypatch.setattr(sys, "argv", ["prepare", str(tmp_path / "0.wav"), str(tmp_path / "1.wav"), *words])
    bench.main()
    (line,) = json.loads((tmp_path / "out" / "prepare.json").read_text())["stages"]
    assert (line["name"], line["items"], line["audio_sec"]) == ("vad", 2, 4.0)
    assert line["one_sec"] > 0
    assert (line["two_sec"] is None) == (workers == 1)
    assert "| vad | 2 | 4 |" in capsys.readouterr().out


def test_profile_shows_functions_of_the_stage(monkeypatch, capsys, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(32_000), 16_000)
    monkeypatch.setattr(sys, "argv", ["prepare", str(tmp_path / "a.wav"), "--profile", "vad"])
    bench.main()
    assert "vad.py" in capsys.readouterr().out


def test_limited_takes_the_first_items(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n{"id": 2}\n{"id": 3}\n')
    first = bench.limited(tmp_path / "a.jsonl", 2, tmp_path / "first")
    assert [item["id"] for item in resolved_items([str(first)])] == [1, 2]
    assert bench.limited(tmp_path / "a.jsonl", None, tmp_path / "first") == tmp_path / "a.jsonl"
