"""What is no recording was taken for one, or ended in a traceback of torch.

(T, 2) gave one code, numpy arrays a message on an empty shape, no samples a reshape error, integers in floats
codes of nothing, and a prompt (2, T) was cut along its channels.
"""

import numpy as np
import pytest
import torch
from decoders import small_flow

from lit_moss.audio import io
from lit_moss.audio.segments import cut_at_pauses
from lit_moss.audio.waves import check_wave
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.speaker import CampPlus, VoiceEncoder
from lit_moss.errors import UserError

RATE_HZ = 16_000
WAVE = torch.rand(RATE_HZ, generator=torch.Generator().manual_seed(0)) - 0.5
STEREO = torch.stack([WAVE, torch.zeros_like(WAVE)])
INT16 = (WAVE * 32_767).round()
READ_ONLY = WAVE.numpy().copy()
READ_ONLY.setflags(write=False)

# The same recording in other forms.
GOOD = {
    "stereo": STEREO, "one channel": WAVE[None], "numpy": WAVE.numpy(), "numpy stereo": STEREO.numpy(),
    "float64": WAVE.double(), "numpy float64": WAVE.double().numpy(), "read only": READ_ONLY,
    "reversed view": WAVE.numpy()[::-1].copy()[::-1], "channels of a (T, C) array": STEREO.T.numpy().T,
    "with a gradient": WAVE.clone().requires_grad_(),
}  # fmt: skip
BAD = {
    "channels last": (STEREO.T, "transpose it"),
    "numpy channels last": (STEREO.T.numpy(), "transpose it"),
    "no channel": (torch.zeros(0, 9), "0 channels"),
    "three dimensions": (STEREO[None], r"shape \(1, 2, 16000\)"),
    "a number": (torch.tensor(0.5), r"shape \(\)"),
    "int16": (INT16.short(), "divide int16 by its full scale"),
    "numpy int16": (INT16.short().numpy(), "divide int16 by its full scale"),
    "complex": (WAVE.to(torch.complex64), "complex64"),
    "integers in float": (INT16, "integers"),
    "integers in numpy float64": (INT16.double().numpy(), "integers"),
    "quiet integers in float": ((WAVE * 6).round(), "integers"),
    "full scale of 32768": (WAVE * 32_768, "not divided by their full scale"),
    "nan": (torch.cat([WAVE, torch.tensor([torch.nan])]), "finite"),
    "infinite": (-torch.cat([WAVE, torch.tensor([torch.inf])]), "finite"),
    "a list of numbers": (WAVE[:4].tolist(), "got (list|float)"),
    "text": ("a.wav", "got str"),
}


@pytest.fixture
def codec(tiny_encoder):
    return Codec(SpeechTokenizer(tiny_encoder()), small_flow())


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_forms_of_the_same_recording_give_the_same(codec, name):
    wave = GOOD[name]
    assert torch.equal(check_wave(wave), WAVE)
    expected = codec.encode(WAVE, RATE_HZ)
    assert torch.equal(codec.encode(wave, RATE_HZ), expected)
    assert torch.equal(codec.encode([wave, WAVE], RATE_HZ)[0], expected)
    stream = codec.tokenizer.stream()
    assert torch.equal(torch.cat([stream.push(wave), stream.flush()]), expected)
    ours, theirs = codec.prompt(wave, RATE_HZ), codec.prompt(WAVE, RATE_HZ)
    assert torch.equal(ours.codes_N, theirs.codes_N)
    assert torch.equal(ours.mel_MT, theirs.mel_MT)
    assert cut_at_pauses(wave, RATE_HZ, 0.4) == cut_at_pauses(WAVE, RATE_HZ, 0.4)


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_recording_is_one_line(codec, name):
    wave, message = BAD[name]
    for take in (
        check_wave,
        lambda wave: codec.encode(wave, RATE_HZ),
        lambda wave: codec.encode([wave], RATE_HZ),
        codec.tokenizer.stream().push,
        lambda wave: codec.prompt(wave, RATE_HZ),
        lambda wave: cut_at_pauses(wave, RATE_HZ, 0.4),
        VoiceEncoder(),
        lambda wave: CampPlus.__call__(CampPlus.__new__(CampPlus), wave),
    ):
        with pytest.raises(ValueError, match=message) as error:
            take(wave)
        assert "expected float samples (T,)" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("rate_hz", [16_000, 24_000, 44_100, 44_101])
@pytest.mark.parametrize("empty", [torch.zeros(0), torch.zeros(2, 0), np.zeros(0, np.float32)], ids=repr)
def test_no_samples_are_no_codes(codec, rate_hz, empty):
    assert codec.encode(empty, rate_hz).tolist() == []
    assert [found.tolist() for found in codec.encode([empty], rate_hz)] == [[]]
    stream = codec.tokenizer.stream()
    assert len(stream.push(empty)) == len(stream.flush()) == 0
    with pytest.raises(UserError, match=r"a prompt of 0\.00 s"):
        codec.prompt(empty, rate_hz)


def test_loud_floats_are_sound(codec):
    """Lossy codecs and mixes go beyond 1 a little; a full-scale square wave is whole numbers."""
    for wave in (3 * WAVE, WAVE.sign(), torch.zeros(RATE_HZ)):
        assert len(codec.encode(wave, RATE_HZ)) == 13


@pytest.mark.parametrize("rate_hz", [0, -16_000, 44_100.5])
def test_a_rate_that_is_none_is_one_line(codec, rate_hz):
    with pytest.raises(ValueError, match="expected whole numbers above 0"):
        codec.encode(WAVE, rate_hz)


def test_only_one_channel_is_written(tmp_path):
    for wave in (STEREO, INT16.short()):
        with pytest.raises(ValueError, match=r"expected float samples \(T,\)"):
            io.write(tmp_path / "a.wav", wave, RATE_HZ)
    io.write(tmp_path / "a.wav", WAVE.numpy(), RATE_HZ)
    assert (io.read(tmp_path / "a.wav", RATE_HZ) - WAVE).abs().max() < 1e-4
