"""Ten minutes of stereo at 48 kHz took 1.1 GB, and one second at 44,101 Hz two minutes.

Files are read and resampled in blocks, whose samples are those of the whole; a pair of rates with a long
common period is resampled by the part of the kernel that is not zero.
"""

import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional as AF

from lit_moss.audio import features, io
from lit_moss.audio.features import Resampler, resample
from lit_moss.codec import SpeechTokenizer

PAIRS = [
    (48_000, 16_000), (44_100, 16_000), (22_050, 16_000), (24_000, 16_000), (32_000, 16_000), (8_000, 16_000),
    (11_025, 16_000), (96_000, 16_000), (48_000, 24_000), (44_100, 24_000), (16_000, 24_000),
    (16_000, 48_000), (16_208, 16_000), (44_101, 16_000),
]  # fmt: skip


def noise(samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))


def at_once(wave: torch.Tensor, from_hz: int, to_hz: int) -> torch.Tensor:
    return AF.resample(wave, from_hz, to_hz, lowpass_filter_width=6, rolloff=0.99)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 1.4 s at 48 kHz in place of 11 s."""
    monkeypatch.setattr(Resampler, "BLOCK_SAMPLES", 2**16)
    monkeypatch.setattr(io, "BLOCK_FRAMES", 50_001)


@pytest.mark.nightly
@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_blocks_give_the_samples_of_the_whole(small_blocks, from_hz, to_hz):
    for samples in (2**17 + 1, 3 * 2**16 - 1, 5 * 2**16 + 12_345):
        wave = noise(samples)
        whole = Resampler(from_hz, to_hz)._at_once(wave)
        assert torch.equal(resample(wave, from_hz, to_hz), whole)
        resampler, pieces = Resampler(from_hz, to_hz), []
        for piece in wave.split(70_001):
            pieces.append(resampler.push(piece))
        assert torch.equal(torch.cat([*pieces, resampler.flush()]), whole)
        if from_hz < 44_101:
            assert torch.equal(whole, at_once(wave, from_hz, to_hz))


def test_blocks_of_batches_and_short_pushes(small_blocks):
    wave = noise(2 * 150_000).view(2, -1)
    assert torch.equal(resample(wave, 48_000, 16_000), at_once(wave, 48_000, 16_000))
    resampler = Resampler(48_000, 16_000)
    pieces = [resampler.push(piece) for piece in noise(1000).split(1)]
    assert torch.equal(torch.cat([*pieces, resampler.flush()]), at_once(noise(1000), 48_000, 16_000))
    assert len(Resampler(48_000, 16_000).flush()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_a_long_file_reads_as_its_whole(small_blocks, tmp_path, kind, rate_hz):
    path = tmp_path / f"a.{kind}"
    stereo = torch.stack([noise(rate_hz * 7 + 123), noise(rate_hz * 7 + 123).flip(0)], dim=1)
    soundfile.write(path, stereo.numpy(), rate_hz)
    with soundfile.SoundFile(path) as file:
        first = torch.from_numpy(file.read(dtype="float32")[:, 0].copy())
    whole = first if rate_hz == 16_000 else at_once(first, rate_hz, 16_000)
    # soundfile seeks after each block, and libsndfile's MP3 decoder then rounds the last bit otherwise.
    torch.testing.assert_close(io.read(path, 16_000), whole, rtol=0, atol=1e-7 if kind == "mp3" else 0)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(16_208, 16_000), (16_000, 16_208), (12_001, 12_000)])
def test_the_sparse_kernel_is_that_of_torchaudio(from_hz, to_hz, monkeypatch):
    wave = noise(20_000).double()
    whole = at_once(wave, from_hz, to_hz) if from_hz != 12_001 else None
    monkeypatch.setattr(Resampler, "MOST_WEIGHTS", 0)
    sparse = resample(wave, from_hz, to_hz)
    assert len(sparse) == -(-20_000 * to_hz // from_hz)
    if whole is not None:
        assert (sparse[: len(whole)] - whole).abs().max() < 1e-9
    assert (resample(wave.float(), from_hz, to_hz) - sparse).abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("rate_hz", [44_101, 8_001, 22_051, 47_999, 191_999])
def test_odd_rates_are_bounded_and_right(tmp_path, rate_hz, tiny_encoder):
    """A tone of 440 Hz stays one; a second of sound takes well below a second (two minutes before)."""
    times = torch.arange(2 * rate_hz, dtype=torch.float64) / rate_hz
    soundfile.write(tmp_path / "a.wav", (0.5 * torch.sin(2 * torch.pi * 440 * times)).numpy(), rate_hz)
    begun = time.process_time()
    wave = io.read(tmp_path / "a.wav", 16_000)
    assert time.process_time() - begun < 10
    assert len(wave) == 32_000
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(32_000, dtype=torch.float64) / 16_000)
    assert (wave - expected)[500:-500].abs().max() < 1e-3
    tokenizer = SpeechTokenizer(tiny_encoder())
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        samples = torch.from_numpy(file.read(dtype="float32"))
    assert torch.equal(tokenizer.encode(samples, rate_hz), tokenizer.encode(wave, 16_000))


@pytest.mark.parametrize("rate_hz", [1, 999, 2_000_000_000])
def test_a_rate_that_no_recording_has_is_named(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.wav", np.zeros(1000, np.float32), rate_hz)
    for read in (io.info, lambda path: io.read(path, 16_000)):
        with pytest.raises(io.UnreadableAudio, match=rf"a\.wav: a sampling rate of {rate_hz} Hz, expected"):
            read(tmp_path / "a.wav")


MEASURE = """
import resource, sys
import torch
from lit_moss.audio import io
io.read(sys.argv[1], 16_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wave = io.read(sys.argv[2], 16_000)
print(len(wave), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.nightly
def test_memory_of_a_long_file_is_that_of_its_result(tmp_path):
    """Four minutes of stereo at 48 kHz: 92 MB as floats, 15 MB at 16 kHz. All at once took over 400 MB."""
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 48_000, 2) as file:
        for _ in range(24):
            file.write(np.random.default_rng(0).normal(0, 0.1, (480_000, 2)))
    soundfile.write(tmp_path / "short.wav", np.zeros((48_000, 2)), 48_000)
    command = [sys.executable, "-c", MEASURE, tmp_path / "short.wav", tmp_path / "long.wav"]
    samples, grown_kb = map(
        int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    )
    assert samples == 240 * 16_000
    assert grown_kb < 120_000


def test_a_silent_first_channel_is_said_once(tmp_path, capsys):
    speech, silence = noise(8000).numpy(), np.zeros(8000, np.float32)
    for name, channels in {"a": (silence, speech), "b": (silence, speech), "c": (speech, silence),
                           "d": (silence, silence)}.items():  # fmt: skip
        soundfile.write(tmp_path / f"{name}.wav", np.stack(channels, axis=1), 16_000)
    for name in "dcaab":
        io.read(tmp_path / f"{name}.wav", 16_000)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{tmp_path / 'a.wav'}: its first channel is silent, channel 2 is not" in said[0]


@pytest.mark.parametrize("scale", [32_768.0, 100.0])
def test_integers_in_a_float_file_are_named(tmp_path, scale):
    wave = (noise(8000) * scale).numpy()
    soundfile.write(tmp_path / "a.wav", np.round(wave) if scale < 1000 else wave, 16_000, subtype="FLOAT")
    with pytest.raises(io.UnreadableAudio, match=r"a\.wav: .*divided by their full scale"):
        io.read(tmp_path / "a.wav", 16_000)


def test_there_is_a_limit_to_what_features_computes_at_once():
    assert features.Resampler.BLOCK_SAMPLES > 20_480  # torch's convolution adds up smaller inputs otherwise
