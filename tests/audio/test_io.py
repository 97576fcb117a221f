"""Sound files: round trips of every format, parts of files, and what is said of files that cannot be used."""

import math

import numpy as np
import pytest
import soundfile
import torch

from lit_moss.audio import io
from lit_moss.audio.io import UnreadableAudio

# Largest difference to what was written, and rates each one can hold.
FORMATS = {
    ".wav": (2e-4, (8_000, 16_000, 22_050, 44_100)),
    ".flac": (2e-4, (8_000, 16_000, 22_050, 44_100)),
    ".ogg": (0.1, (16_000, 44_100)),
    ".mp3": (0.1, (16_000, 24_000, 44_100)),
    ".opus": (0.1, (48_000,)),
}
CASES = [(ext, rate_hz, channels) for ext in FORMATS for rate_hz in FORMATS[ext][1] for channels in (1, 2)]


def tone(rate_hz: int, sec: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * math.pi * hz * np.arange(round(sec * rate_hz)) / rate_hz)).astype(np.float32)


def store(path, samples, rate_hz):
    if path.suffix != ".opus":
        soundfile.write(path, samples, rate_hz)
    elif "OPUS" in soundfile.available_subtypes("OGG"):
        soundfile.write(path, samples, rate_hz, format="OGG", subtype="OPUS")
    else:
        pytest.skip("this libsndfile has no opus")
    return path


@pytest.mark.parametrize(("ext", "rate_hz", "channels"), CASES)
def test_read_gives_the_first_channel_of_every_format(tmp_path, ext, rate_hz, channels):
    wave = tone(rate_hz)
    others = [0.3 * tone(rate_hz, hz=1000.0)] * (channels - 1)
    path = store(tmp_path / f"a{ext}", np.stack([wave, *others], axis=1), rate_hz)
    read = io.read(path, rate_hz).numpy()
    assert read.dtype == np.float32
    assert len(read) == len(wave)
    middle = slice(len(wave) // 4, -len(wave) // 4)  # lossy codecs ring at the edges
    assert np.abs(read - wave)[middle].max() <= FORMATS[ext][0]


@pytest.mark.parametrize("ext", [".wav", ".flac", ".ogg", ".mp3"])
def test_write_follows_the_extension_and_reads_back(tmp_path, ext):
    wave = torch.from_numpy(tone(16_000))
    io.write(tmp_path / f"a{ext}", wave, 16_000)
    read = io.read(tmp_path / f"a{ext}", 16_000)
    assert (read - wave)[2000:-2000].abs().max() <= FORMATS[ext][0]


def test_info_gives_length_rate_and_channels(tmp_path):
    path = store(tmp_path / "a.wav", np.zeros((11_025, 3), np.float32), 22_050)
    assert io.info(path) == io.AudioInfo(frames=11_025, rate_hz=22_050, channels=3)
    assert io.info(path).duration_sec == 0.5


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100])
def test_read_resamples_to_the_asked_rate(tmp_path, rate_hz):
    path = store(tmp_path / "a.wav", tone(rate_hz), rate_hz)
    read = io.read(path, 16_000)
    assert len(read) == math.ceil(round(0.5 * rate_hz) * 16_000 / rate_hz)
    expected = torch.from_numpy(tone(16_000))[: len(read)]
    assert (read[: len(expected)] - expected)[500:-500].abs().max() < 1e-3


@pytest.mark.parametrize(
    ("offset_sec", "duration_sec", "part"),
    [(0.0, 0.25, slice(0, 4000)), (0.1, 0.2, slice(1600, 4800)), (0.3, None, slice(4800, 8000)),
     (0.4, 0.19, slice(6400, 8000))],
)  # fmt: skip
@pytest.mark.parametrize("ext", [".wav", ".flac"])
def test_parts_of_files_are_the_samples_of_the_whole(tmp_path, ext, offset_sec, duration_sec, part):
    path = store(tmp_path / f"a{ext}", tone(16_000), 16_000)
    assert torch.equal(io.read(path, 16_000, offset_sec, duration_sec), io.read(path, 16_000)[part])


def not_finite(path):
    samples = tone(16_000)
    samples[77] = np.nan
    soundfile.write(path, samples, 16_000, subtype="FLOAT")


def cut_in_half(path):
    store(path, tone(16_000, sec=2.0), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "missing.wav": lambda path: None,
    "zero_bytes.wav": lambda path: path.write_bytes(b""),
    "text.wav": lambda path: path.write_text("no sound at all\n" * 100),
    "no_samples.wav": lambda path: store(path, np.zeros(0, np.float32), 16_000),
    "cut.flac": cut_in_half,
    "cut.mp3": cut_in_half,
    "cut.ogg": cut_in_half,
    "nan.wav": not_finite,
    "folder.wav": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name):
    BAD[name](tmp_path / name)
    with pytest.raises(UnreadableAudio, match=name):
        io.read(tmp_path / name, 16_000)


@pytest.mark.parametrize("name", ["missing.wav", "zero_bytes.wav", "text.wav", "no_samples.wav"])
def test_info_of_a_file_that_cannot_be_used_names_it(tmp_path, name):
    BAD[name](tmp_path / name)
    with pytest.raises(UnreadableAudio, match=name):
        io.info(tmp_path / name)


def test_an_offset_beyond_the_end_is_an_error_that_names_the_file(tmp_path):
    path = store(tmp_path / "a.wav", tone(16_000), 16_000)
    with pytest.raises(UnreadableAudio, match=r"a\.wav"):
        io.read(path, 16_000, offset_sec=3.0)
