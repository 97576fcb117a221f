"""`evaluate paralinguistics`: copies that are known, whole runs, kills, mistakes."""

import csv
import json
from pathlib import Path

import pytest
import torch
from decoders import small_flow

from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.evaluate.clips import read_clips

pytest.importorskip("pyworld", reason="needs the extra `evaluate`")
pytest.importorskip("silero_vad", reason="needs the extra `evaluate`")


def loud_or_soft(wave_T: torch.Tensor) -> str:
    """A classifier of emotion, for tests."""
    return "angry" if float(wave_T.abs().max()) > 0.25 else "sad"


@pytest.fixture
def copies(corpus, tmp_path, monkeypatch) -> Path:
    """The validation clips at a fifth of their level, as CLIP.wav."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copies").mkdir()
    for clip in read_clips(corpus / "validation.jsonl"):
        io.write(tmp_path / "copies" / f"{clip.id}.wav", 0.2 * io.read(clip.audio, 24_000), 24_000)
    return tmp_path / "copies"


def evaluate(corpus, *words: str) -> dict[str, float]:
    keys = [f"--clips={corpus / 'validation.jsonl'}", "--speaker=null", *words]
    assert main(["evaluate", "paralinguistics", *keys]) == 0
    (result,) = Path("runs/paralinguistics").glob("*/result.json")
    return json.loads(result.read_text())


@pytest.mark.nightly
def test_a_softer_copy_keeps_all_but_its_level(corpus, copies):
    emotion = f"--emotion={__name__}:loud_or_soft"
    metrics = evaluate(corpus, "--rungs=[files]", f"--files={copies}", emotion)
    assert metrics["files/f0_correlation"] > 0.98
    assert metrics["files/energy_correlation"] > 0.9
    assert -14.1 < metrics["files/level_db"] < -10  # 20 lg 0.2; at the floor of -60 dB it is less
    assert metrics["files/rate_ratio"] == pytest.approx(1, abs=0.1)
    assert metrics["files/emotion_same"] == 0
    assert metrics["files/duration_ratio"] == 1
    assert (metrics["n"], metrics["failures"]) == (2, 0)
    (folder,) = Path("runs/paralinguistics").iterdir()
    assert "(0.000 to 0.658)" in (folder / "report.md").read_text()  # Wilson's interval of 0 of 2


@pytest.mark.nightly
def test_a_copy_that_is_cut_off_shows_in_its_duration(corpus, copies):
    for file in copies.glob("*.wav"):
        wave_T = io.read(file, 24_000)
        io.write(file, wave_T[: len(wave_T) // 2], 24_000)
    metrics = evaluate(corpus, "--rungs=[files]", f"--files={copies}")
    assert metrics["files/duration_ratio"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.nightly
def test_a_missing_copy_is_counted_as_a_failure(corpus, copies, capsys):
    next(copies.glob("*.wav")).unlink()
    metrics = evaluate(corpus, "--rungs=[files]", f"--files={copies}")
    assert metrics["failures"] == 1
    assert "counted as wrong" in capsys.readouterr().err


@pytest.mark.nightly
def test_a_codec_is_compared_and_a_killed_run_goes_on(corpus, copies, tiny_encoder, tmp_path):
    Codec(SpeechTokenizer(tiny_encoder()), small_flow()).save_pretrained(tmp_path / "codec")
    words = [f"--codec={tmp_path / 'codec'}", "--rungs=[vocoder,codec]"]
    metrics = evaluate(corpus, *words)
    assert metrics["vocoder/f0_correlation"] > 0.8
    assert metrics["vocoder/energy_correlation"] > 0.95
    assert metrics["vocoder/voicing_error"] < metrics["codec/voicing_error"]
    (folder,) = Path("runs/paralinguistics").iterdir()
    rows = list(csv.DictReader((folder / "items.csv").open()))
    assert [row["rung"] for row in rows] == ["vocoder", "codec"] * 2
    lines = (folder / "items.jsonl").read_text().splitlines(keepends=True)
    (folder / "items.jsonl").write_text(lines[0] + lines[1][:30])
    (folder / "result.json").unlink()
    assert evaluate(corpus, *words) == metrics


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rungs=[codec]"], "need a codec: give one, or judge files alone"),
        (["--rungs=[files]"], "rung files needs a folder"),
        (["--codec=x", "--f0_floor_hz=900"], "expected 0 < floor < ceil <= 4000"),
        (["--rungs=[files]", "--files=x", "--emotion=happy"], "expected emotion2vec_plus_large or package"),
        (["--rungs=[files]", "--files=x", "--emotion=no_such:f"], "cannot be imported"),
        (["--rungs=[files]", "--files=x", "--emotion=emotion2vec_plus_large"], "needs funasr"),
        (["--rungs=[files]", "--files=x"], "none of the 2 clips"),
    ],
)
def test_mistakes_are_one_line(corpus, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    keys = [f"--clips={corpus / 'validation.jsonl'}", "--speaker=null", *words]
    assert main(["evaluate", "paralinguistics", *keys]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
