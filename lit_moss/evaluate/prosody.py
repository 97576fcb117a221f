"""Pitch, energy and pauses of a recording and of a copy with the same timing, and their agreement.

Waves are samples (T,) at 16 kHz in [-1, 1]. Frames are 5 ms apart; frames with the same index are compared,
and the longer side is truncated.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.data.transcripts import normalise
from lit_moss.errors import UserError
from lit_moss.prepare.vad import VadOptions, find_segments
from lit_moss.prepare.vad_models import Silero

EXTRA = "pip install 'lit-moss[evaluate]'"
RATE_HZ = rates.TOKENIZER_RATE_HZ
FRAME_SEC = 0.005
_HOP_SAMPLES = round(FRAME_SEC * RATE_HZ)
_WINDOW_SAMPLES = 400  # 25 ms
_FLOOR_DB = -60.0
_OCTAVE_SEMITONES = 6.0  # larger differences are octave errors
# Pauses as in VERSA: speech of at least 250 ms, silence of at least 100 ms, 30 ms of margin.
_PAUSES = VadOptions(
    threshold=0.5,
    min_speech_sec=0.25,
    min_silence_sec=0.1,
    join_gap_sec=0.0,
    pad_sec=0.03,
    max_speech_sec=1e6,
)


def f0_hz(wave_T: Tensor, floor_hz: float = 40.0, ceil_hz: float = 800.0) -> np.ndarray:
    """Pitch of each frame by WORLD's harvest, float64 (F,); 0 for unvoiced frames.

    Raises:
        UserError: if pyworld is not installed.
    """
    try:
        pyworld: Any = importlib.import_module("pyworld")
    except ImportError as error:
        raise UserError(f"pitch needs pyworld: {EXTRA}") from error
    wave = wave_T.double().numpy()
    return pyworld.harvest(wave, RATE_HZ, floor_hz, ceil_hz, 1000 * FRAME_SEC)[0]


@dataclass(frozen=True)
class PitchAgreement:
    """Agreement of two pitch contours; None if too few frames are voiced in both.

    Args:
        correlation: Pearson correlation of log-F0 over frames voiced in both, without octave errors.
        rmse_semitones: Root mean square difference in semitones, over the same frames.
        octave_error: Fraction of the frames voiced in both that are more than half an octave apart.
        voicing_error: Fraction of all frames that are voiced in only one.
        common_voiced: Frames voiced in both / frames voiced in either.
    """

    correlation: float | None
    rmse_semitones: float | None
    octave_error: float | None
    voicing_error: float
    common_voiced: float | None


def compare_pitch(original_F: np.ndarray, other_F: np.ndarray) -> PitchAgreement:
    """Agreement of two contours in Hz, with 0 for unvoiced frames.

    Semitones are 12 log2(F0 / 1 Hz). Zeros are never used: only voiced frames are correlated.
    """
    frames = min(len(original_F), len(other_F))
    a_F, b_F = original_F[:frames], other_F[:frames]
    both_F, either_F = (a_F > 0) & (b_F > 0), (a_F > 0) | (b_F > 0)
    a_N, b_N = 12 * np.log2(a_F[both_F]), 12 * np.log2(b_F[both_F])
    near_N = np.abs(a_N - b_N) <= _OCTAVE_SEMITONES
    a_M, b_M = a_N[near_N], b_N[near_N]
    return PitchAgreement(
        pearson(a_M, b_M),
        float(np.sqrt(np.mean((a_M - b_M) ** 2))) if len(a_M) else None,
        float(1 - near_N.mean()) if len(a_N) else None,
        float(np.mean(both_F != either_F)) if frames else 0.0,
        float(both_F.sum() / either_F.sum()) if either_F.any() else None,
    )


def pearson(a_N: np.ndarray, b_N: np.ndarray) -> float | None:
    """Pearson correlation; None for fewer than three values, or if one side is constant."""
    if len(a_N) < 3 or min(a_N.std(), b_N.std()) < 1e-9:
        return None
    return float(np.corrcoef(a_N, b_N)[0, 1])


def energy_db(wave_T: Tensor) -> np.ndarray:
    """Root mean square of 25 ms windows in dB of full scale, at least -60: float64 (F,)."""
    wave = wave_T.double().numpy()
    padded = np.pad(wave, (0, max(0, _WINDOW_SAMPLES - len(wave))))
    power = np.concatenate([[0.0], np.cumsum(padded**2)])
    starts = np.arange(0, len(padded) - _WINDOW_SAMPLES + 1, _HOP_SAMPLES)
    mean = np.maximum(0.0, power[starts + _WINDOW_SAMPLES] - power[starts]) / _WINDOW_SAMPLES
    return np.maximum(_FLOOR_DB, 10 * np.log10(np.maximum(mean, 1e-12)))


def compare_energy(original_F: np.ndarray, other_F: np.ndarray) -> tuple[float | None, float]:
    """Pearson correlation of two energy contours in dB, and mean level of the second minus the first."""
    frames = min(len(original_F), len(other_F))
    a_F, b_F = original_F[:frames], other_F[:frames]
    return pearson(a_F, b_F), float(np.mean(b_F - a_F))


@dataclass(frozen=True)
class Timing:
    """Stretches of speech in a recording.

    Args:
        speech: Start and end of each stretch of speech, in seconds.
    """

    speech: tuple[tuple[float, float], ...]

    @property
    def pauses(self) -> list[tuple[float, float]]:
        """Start and end of each pause within speech, excluding silence before and after all of it."""
        return [(end, start) for (_, end), (start, _) in zip(self.speech, self.speech[1:], strict=False)]

    @property
    def net_sec(self) -> float:
        """Duration of speech in seconds, without pauses."""
        return sum(end - start for start, end in self.speech)

    @property
    def pause_sec(self) -> float:
        """Duration of all pauses in seconds."""
        return sum(end - start for start, end in self.pauses)


def timing(wave_T: Tensor) -> Timing:
    """Stretches of speech, found by silero-vad with VERSA's settings.

    Raises:
        UserError: if silero-vad is not installed.
    """
    stream = _silero().stream()
    probabilities = np.concatenate([stream.push(wave_T.float().numpy()), stream.flush()])
    segments = find_segments(probabilities, len(wave_T), _PAUSES)
    return Timing(tuple((s.start / RATE_HZ, s.end / RATE_HZ) for s in segments))


@cache
def _silero() -> Any:
    return Silero()


def pause_overlap(original: Timing, other: Timing) -> tuple[float, float]:
    """Seconds that are a pause in both, and in either; their ratio is the IoU of the pause masks."""
    common = sum(
        max(0.0, min(end_a, end_b) - max(start_a, start_b))
        for start_a, end_a in original.pauses
        for start_b, end_b in other.pauses
    )
    return common, original.pause_sec + other.pause_sec - common


def speech_units(text: str, language: str) -> int:
    """Units of the speaking rate: characters in Chinese, words otherwise."""
    words = normalise(text, "auto")
    return len(words.replace(" ", "")) if language == "zh" else len(words.split())


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, with mean ranks for ties; None for < 3 or constant values."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[place]

    return pearson(ranks(a), ranks(b)) if len(a) >= 3 else None
