"""The shipped chains on small real inputs: what comes out, for any number of workers, and what stops them."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from lit_moss.audio import io
from lit_moss.data.documents import read_documents

sys.path.insert(0, str(Path(__file__).parent))
import chains

FRAMES_PER_SEC = 12.5
# Of conf/prepare/speech.yaml: each stage costs every worker some seconds of imports.
SHORT = f"""
steps:
  vad:
  transcribe: {{model: {chains.WHISPER}, language: en}}
  align: {{aligner: whisper}}
  tokenize:
  interleave: {{unsupervised: all, context: 1024, validation_share: 0.1}}
"""


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def joined(corpus, tmp_path_factory):
    return chains.recordings(corpus, tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def speech(joined, tmp_path_factory) -> Path:
    """What `SHORT` makes of them by one worker."""
    folder = tmp_path_factory.mktemp("speech")
    done = run_speech(folder, joined, "--workers", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out"


def run_speech(folder: Path, joined, *words: str) -> subprocess.CompletedProcess:
    cache = chains.own_cache(folder / "cache")
    sources = str(joined[0].path.parent)
    (folder / "short.yaml").write_text(SHORT)
    return chains.prepare(folder, cache, "-c", "short.yaml", sources, *chains.SMALL, "--out", "out", *words)


@pytest.mark.nightly
def test_nothing_of_the_speech_is_cut_off(speech, joined):
    items = lines(speech / "tokenize" / "manifest.jsonl")
    codes = 0
    for recording in joined:
        own = [i for i in items if Path(i["audio_filepath"]).stem == recording.path.stem]
        spans = [(i["offset"], i["offset"] + i["duration"]) for i in own]
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        assert spans[-1][1] <= recording.seconds + 1 / FRAMES_PER_SEC
        assert spans[0][0] <= recording.speech[0][0]
        assert spans[-1][1] >= recording.speech[-1][1]
        for item in own:
            assert abs(item["codes"] - item["duration"] * FRAMES_PER_SEC) <= 1
            codes += item["codes"]
    assert codes == sum(i["codes"] for i in items)


@pytest.mark.nightly
def test_documents_are_read_and_hold_every_code(speech):
    items = lines(speech / "tokenize" / "manifest.jsonl")
    rows = {}
    for folder in sorted((speech / "interleave").glob("*/meta.json")):
        documents = read_documents(folder.parent)
        rows[folder.parent.name] = [documents.rows(i) for i in range(len(documents))]
    assert set(rows) == {"interleaved", "interleaved-validation", "unsupervised", "unsupervised-validation"}
    meta = json.loads((speech / "interleave" / "unsupervised" / "meta.json").read_text())
    first = meta["format"]["text_vocab_size"]
    speech_rows = [r for name in rows if name.startswith("unsupervised") for r in rows[name]]
    held = sum(int((r >= first).sum()) for r in speech_rows)
    assert sum(i["codes"] for i in items) <= held <= sum(i["codes"] for i in items) + 3 * len(items)


@pytest.mark.nightly
def test_two_workers_write_the_same_bytes(speech, joined, tmp_path):
    done = run_speech(tmp_path, joined, "--workers", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "out", speech)


@pytest.mark.nightly
def test_ray_writes_the_same_bytes(speech, joined, tmp_path):
    pytest.importorskip("ray")
    done = run_speech(tmp_path, joined, "--workers", "2", "--engine", "ray")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "out", speech)


def assert_same(ours: Path, theirs: Path) -> None:
    found, expected = chains.contents(ours), chains.contents(theirs)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


# --- stopped ------------------------------------------------------------------------------------------------


@pytest.fixture
def synthesis(tmp_path):
    """Options of a stage that takes some seconds, and its cache."""
    words = ("synthesize", *chains.SMALL, str(chains.texts(tmp_path)), "--out", "out")
    return words, chains.own_cache(tmp_path / "cache")


@pytest.mark.nightly
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_so_and_goes_on(synthesis, tmp_path, workers, number, code):
    words, cache = synthesis
    started = chains.begin(tmp_path, cache, *words, "--workers", workers)
    deadline = time.monotonic() + 120
    while not chains.has_sounds(tmp_path / "out" / "audio") and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(started.pid, number) if number == signal.SIGINT else os.kill(started.pid, number)
    stopped = started.wait(60)
    assert (stopped.returncode, "Traceback" in stopped.stderr) == (code, False), stopped.stderr[-3000:]
    assert ("interrupted" if code == 130 else "stopped by SIGTERM") in stopped.stderr
    assert not (tmp_path / "out" / "stage.json").exists()
    done = chains.prepare(tmp_path, cache, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(lines(tmp_path / "out" / "manifest.jsonl")) == 9
    assert not list((tmp_path / "out").rglob("*.partial-*"))


@pytest.mark.nightly
def test_a_killed_worker_of_a_real_stage_is_one_line(synthesis, tmp_path):
    words, cache = synthesis
    done = chains.prepare(tmp_path, cache, *words, "--workers", "2", kill={"synthesize": 1})
    assert done.returncode == 2, done.stderr[-3000:]
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        "error: step synthesize: a worker was killed, by the system if memory ran out: start again with "
        "fewer --workers; what is done stays"
    ]
    assert "Traceback" not in done.stderr
    assert chains.prepare(tmp_path, cache, *words, "--workers", "2").returncode == 0
    assert len(lines(tmp_path / "out" / "manifest.jsonl")) == 9


# --- damaged recordings -------------------------------------------------------------------------------------


def damaged(folder: Path, good: Path) -> dict[str, Path]:
    """Recordings that cannot be read, each in another way."""
    import soundfile

    wave = io.read(good, 16_000).numpy()
    whole = folder / "whole.flac"
    soundfile.write(whole, wave, 16_000)
    content = whole.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0x10
    nan = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 64_000, b"WAVE", b"fmt ", 16, 3, 1, 16_000, 64_000,
                      4, 32, b"data", 64_000) + struct.pack("<f", float("nan")) * 16_000  # fmt: skip
    contents = {
        "half.flac": content[: len(content) // 2],
        "empty.wav": b"",
        "letter.wav": b"Dear Sir or Madam, this is no sound at all.\n" * 20,
        "nan.wav": nan,
        "flipped.flac": bytes(flipped),
    }
    whole.unlink()
    for name, bad in contents.items():
        (folder / name).write_bytes(bad)
    return {name: folder / name for name in contents}


def test_damaged_recordings_are_counted_and_named(joined, tmp_path):
    from lit_moss.cli.main import main

    folder = tmp_path / "recordings"
    folder.mkdir()
    bad = damaged(folder, joined[0].path)
    for recording in joined:
        (folder / recording.path.name).symlink_to(recording.path)
    words = ["prepare", "vad", str(folder), "--out", str(tmp_path / "out"), "--track", "false"]
    assert main([*words, "--max_bad_share", "1"]) == 0
    rejected = [r for r in lines(tmp_path / "out" / "rejected.jsonl") if r["reason"] == "unreadable audio"]
    assert {Path(r["item"]["audio_filepath"]).name for r in rejected} == set(bad)
    for r in rejected:
        assert Path(r["item"]["audio_filepath"]).name in r["value"]
    segments = lines(tmp_path / "out" / "manifest.jsonl")
    assert {Path(s["audio_filepath"]).name for s in segments} == {j.path.name for j in joined}


def test_too_many_damaged_recordings_stop_the_run(joined, tmp_path, capsys):
    from lit_moss.cli.main import main

    folder = tmp_path / "recordings"
    folder.mkdir()
    bad = damaged(folder, joined[0].path)
    for recording in joined:
        (folder / recording.path.name).symlink_to(recording.path)
    words = ["prepare", "vad", str(folder), "--out", str(tmp_path / "out"), "--track", "false"]
    for _ in range(2):  # and again when nothing is left to run
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "5 of 8 items are unreadable" in error
        assert sum(name in error for name in bad) >= 3
