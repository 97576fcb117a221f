"""Sound files of answers: `chat --out answer.ogg` of 90 s and more was a segmentation fault, and a place that
cannot be written to ended with a traceback after the answer was made."""

import os
import resource
import signal
import subprocess
import sys

import pytest
import soundfile
import talker
import torch

from lit_moss.audio import io
from lit_moss.cli import chat
from lit_moss.cli.main import main
from lit_moss.corpora.manifest import Utterance
from lit_moss.errors import UserError
from lit_moss.files import atomic_write, check_can_write, errors_of_writing
from lit_moss.hub.audio_to_codes import write_codes

RATE_HZ = 24_000
LENGTHS = (0, 1, 100, 2**16 - 1, 2**16, 2**16 + 1, 200_003)


def noise(samples, dtype=torch.float32):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_files_have_the_bytes_of_a_wave_in_one_call(tmp_path, name, dtype):
    for samples in LENGTHS:
        wave_T = noise(samples, dtype)
        io.write(tmp_path / name, wave_T, RATE_HZ)
        soundfile.write(tmp_path / f"whole_{name}", wave_T.numpy(), RATE_HZ)
        assert (tmp_path / name).read_bytes() == (tmp_path / f"whole_{name}").read_bytes()


@pytest.mark.slow
def test_two_minutes_are_written_as_ogg(tmp_path):
    file = tmp_path / "long.ogg"
    code = (  # in a process of its own: it was a segmentation fault
        "import torch\n"
        "from lit_moss.audio import io\n"
        f"io.write({str(file)!r}, 0.1 * torch.randn(24_000 * 120), 24_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert io.info(file).duration_sec == pytest.approx(120)


@pytest.mark.parametrize("ending", ["ogg", "opus", "mp3"])
def test_compressed_sound_in_blocks_is_the_wave(tmp_path, ending):
    wave_T, file = talker.wave(7.0), tmp_path / f"a.{ending}"
    io.write(file, wave_T, RATE_HZ)
    read_T = io.read(file, RATE_HZ)
    assert len(read_T) == pytest.approx(len(wave_T), abs=1)
    assert (read_T - wave_T).abs().mean() < 0.01


# --- places that cannot be written to -----------------------------------------------------------------------


@pytest.fixture
def odd_places(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "folder.wav/thesis.tex").write_text("kept")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    return tmp_path


PLACES = ["file/a.wav", "file/b/a.wav", "gone/a.wav", "folder.wav", "x" * 300 + ".wav"]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_to_is_found_before_the_model_is_opened(odd_places, capsys, place):
    before = sorted(odd_places.rglob("*"))
    words = ["--model", "no-such-model", "--text", "Hi", "--force", "--out", str(odd_places / place)]
    assert main(["chat", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert place in line
    assert "could not be written" in line or "is a folder" in line
    assert sorted(odd_places.rglob("*")) == before


def test_a_place_that_can_be_made_is_not_made_yet(tmp_path):
    check_can_write(tmp_path / "new/folders/a.wav")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_closed_folder_is_one_line(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        check_can_write(tmp_path / "closed/new/a.wav")


@pytest.mark.parametrize("place", ["file/codes.jsonl", "gone/codes.jsonl"])
def test_codes_without_a_place_are_one_line_before_anything_is_encoded(odd_places, monkeypatch, place):
    monkeypatch.setattr("lit_moss.codec.encoder.fingerprint", lambda encoder: "0123")

    class Tokenizer:
        encoder = None

        def encode(self, *_):
            raise AssertionError("encoded")

    io.write(odd_places / "a.wav", talker.wave(0.5), RATE_HZ)
    with pytest.raises(UserError, match="could not be written"):
        write_codes(odd_places / place, [Utterance(odd_places / "a.wav")], Tokenizer())  # pyright: ignore


def test_a_disk_that_fills_up_under_a_sound_is_one_line(tmp_path):
    """libsndfile's error is no OSError."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        for name in ("a.wav", "a.ogg"):
            out = tmp_path / name
            with (
                pytest.raises(UserError, match="could not be written"),
                errors_of_writing(out),
                atomic_write(out) as partial,
            ):
                io.write(partial, noise(RATE_HZ * 60), RATE_HZ)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_answer_whose_disk_is_full_is_one_line(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    talker.model_folder(tmp_path / "tiny")
    monkeypatch.setattr(chat, "_listen", lambda session, options: (torch.zeros(100), ""))
    monkeypatch.setattr(io, "write", full)
    out = tmp_path / "a.wav"
    words = ["--model", str(tmp_path / "tiny"), "--device", "cpu", "--text", "Hi", "--out", str(out)]
    assert main(["chat", *words]) == 2
    assert f"{out} could not be written (No space left on device)" in capsys.readouterr().err
