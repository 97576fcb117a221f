"""Measures of prosody on signals whose pitch, level and pauses are known."""

import math

import numpy as np
import pytest
import torch

from lit_moss.evaluate import prosody
from lit_moss.evaluate.prosody import Timing

SEMITONE = 2 ** (1 / 12)


def tone(f0_hz: float, seconds: float = 2.0, vibrato_semitones: float = 3.0) -> torch.Tensor:
    """Ten harmonics whose pitch swings once a second."""
    t = torch.arange(int(16_000 * seconds)) / 16_000
    f0 = f0_hz * 2 ** (vibrato_semitones / 12 * torch.sin(2 * math.pi * t))
    phase = 2 * math.pi * torch.cumsum(f0.double() / 16_000, dim=0)
    return 0.1 * sum(torch.cos(k * phase) / k for k in range(1, 11)).float()


@pytest.mark.slow
def test_a_shift_of_pitch_is_its_rmse_and_leaves_the_correlation():
    pytest.importorskip("pyworld", reason="needs the extra `evaluate`")
    original = prosody.f0_hz(tone(180))
    assert np.median(original[original > 0]) == pytest.approx(180, rel=0.02)
    same = prosody.compare_pitch(original, original)
    assert (same.correlation, same.rmse_semitones) == (pytest.approx(1), 0)
    assert (same.octave_error, same.voicing_error, same.common_voiced) == (0, 0, 1)
    shifted = prosody.compare_pitch(original, prosody.f0_hz(tone(180 * SEMITONE**2)))
    assert shifted.rmse_semitones == pytest.approx(2, abs=0.1)
    assert shifted.correlation is not None
    assert shifted.correlation > 0.98
    assert shifted.octave_error == pytest.approx(0, abs=0.02)
    octave = prosody.compare_pitch(original, prosody.f0_hz(tone(360)))
    assert octave.octave_error is not None
    assert octave.octave_error > 0.95


def test_octave_errors_and_voicing_are_counted_apart():
    a = np.array([100.0, 110, 120, 130, 0, 0, 100, 140])
    b = np.array([100 * SEMITONE, 110 * SEMITONE, 240, 130 * SEMITONE, 0, 90, 0, 140 * SEMITONE, 500])
    found = prosody.compare_pitch(a, b)
    assert found.octave_error == pytest.approx(1 / 5)
    assert found.rmse_semitones == pytest.approx(1)
    assert found.correlation == pytest.approx(1)
    assert found.voicing_error == pytest.approx(2 / 8)
    assert found.common_voiced == pytest.approx(5 / 7)
    silent = prosody.compare_pitch(np.zeros(5), np.zeros(5))
    assert (silent.correlation, silent.rmse_semitones, silent.common_voiced) == (None, None, None)


def test_energy_of_a_sine_and_of_a_gain():
    sine = torch.sin(2 * math.pi * 200 * torch.arange(16_000) / 16_000)
    assert prosody.energy_db(sine) == pytest.approx(10 * math.log10(0.5), abs=0.05)
    assert prosody.energy_db(torch.zeros(4_000)) == pytest.approx(-60)
    swell = sine * torch.linspace(0.1, 1, 16_000)
    correlation, level_db = prosody.compare_energy(prosody.energy_db(swell), prosody.energy_db(0.5 * swell))
    assert correlation == pytest.approx(1)
    assert level_db == pytest.approx(20 * math.log10(0.5), abs=1e-6)
    assert prosody.compare_energy(np.full(9, -20.0), np.full(9, -26.0)) == (None, -6)


def test_pauses_lie_between_stretches_of_speech():
    original = Timing(((0.2, 1.0), (1.5, 2.0), (3.0, 4.0)))
    assert original.pauses == [(1.0, 1.5), (2.0, 3.0)]
    assert original.net_sec == pytest.approx(2.3)
    assert original.pause_sec == pytest.approx(1.5)
    other = Timing(((0.0, 1.25), (1.5, 2.0), (2.5, 4.5)))
    common, either = prosody.pause_overlap(original, other)
    assert (common, either) == (pytest.approx(0.75), pytest.approx(1.5))
    assert prosody.pause_overlap(Timing(()), Timing(((0, 1),))) == (0, 0)


def test_an_inserted_pause_is_found(speech):
    pytest.importorskip("silero_vad", reason="needs the extra `evaluate`")
    wave = speech[0]
    before = prosody.timing(wave)
    start, end = max(before.speech, key=lambda span: span[1] - span[0])
    cut = int(16_000 * (start + end) / 2)
    after = prosody.timing(torch.cat([wave[:cut], torch.zeros(24_000), wave[cut:]]))
    assert len(after.pauses) == len(before.pauses) + 1
    assert after.pause_sec - before.pause_sec == pytest.approx(1.5, abs=0.25)
    assert after.net_sec == pytest.approx(before.net_sec, abs=0.25)


def test_units_of_rates_and_rank_correlation():
    assert prosody.speech_units("It's a well-known fact.", "en") == 5
    assert prosody.speech_units("你好，世界", "zh") == 4
    assert prosody.spearman([1, 2, 3, 4], [10, 100, 1000, 10_000]) == pytest.approx(1)
    assert prosody.spearman([1, 2, 2, 3], [3, 2, 2, 1]) == pytest.approx(-1)
    assert prosody.spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert prosody.spearman([1, 2], [1, 2]) is None
