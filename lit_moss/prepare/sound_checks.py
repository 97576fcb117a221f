"""Finds faults of synthesized speech without recognition: length, silence, level.

Shapes: T samples, F frames of 10 ms.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FRAME_SEC = 0.01
# Frames this far below the loudest ones are silent, and those below the floor (in dB of full scale).
SILENT_BELOW_LOUD_DB = 40.0
FLOOR_DB = -65.0
_FLAT_RUN = 3  # consecutive equal samples at the peak; an unclipped wave turns there


@dataclass(frozen=True)
class Limits:
    """Limits beyond which a sound is rejected.

    Args:
        chars_per_sec: Letters of the text per second, from the slowest to the fastest speech.
        slack_sec: Time in seconds to add to the maximum length of a text, since short texts are spoken
            slowly.
        edge_silence_sec: Maximum silence before and after the speech, each, in seconds.
        clipped_share: Maximum fraction of clipped samples.
        level_db: Minimum and maximum root mean square of the frames with sound, in dB of full scale.
    """

    chars_per_sec: tuple[float, float]
    slack_sec: float
    edge_silence_sec: float
    clipped_share: float
    level_db: tuple[float, float]


@dataclass(frozen=True)
class Fault:
    """A violated rule.

    Args:
        reason: Name of the rule.
        value: Measured value.
        threshold: The limit.
    """

    reason: str
    value: float | str
    threshold: float | str


def faults(wave_T: np.ndarray, rate_hz: int, chars: int, limits: Limits) -> Iterator[Fault]:
    """Yields the rules that a sound violates, the most informative one first.

    Args:
        wave_T: Samples in [-1, 1], float32 (T,), at the sample rate of the file, because resampling hides
            clipping.
        rate_hz: Sample rate in Hz.
        chars: Number of letters, digits and Chinese characters of the text in its spoken form.
        limits: The limits.
    """
    level_F = frame_levels_db(wave_T, rate_hz)
    before, sound, after = edges_sec(level_F)
    if not sound:
        yield Fault("silence", round(float(level_F.max(initial=-120.0)), 1), FLOOR_DB)
        return
    slowest, fastest = limits.chars_per_sec
    shortest_sec, longest_sec = chars / fastest, chars / slowest + limits.slack_sec
    if sound < shortest_sec:
        yield Fault("too short for its text", round(sound, 2), round(shortest_sec, 2))
    if sound > longest_sec:
        yield Fault("too long for its text", round(sound, 2), round(longest_sec, 2))
    for place, silence_sec in (("leading", before), ("trailing", after)):
        if silence_sec > limits.edge_silence_sec:
            yield Fault(f"{place} silence", round(silence_sec, 2), limits.edge_silence_sec)
    clipped = clipped_share(wave_T)
    if clipped > limits.clipped_share:
        yield Fault("clipping", round(clipped, 5), limits.clipped_share)
    level_db = speech_level_db(level_F)
    quietest, loudest = limits.level_db
    if level_db < quietest:
        yield Fault("too quiet", round(level_db, 1), quietest)
    if level_db > loudest:
        yield Fault("too loud", round(level_db, 1), loudest)


def frame_levels_db(wave_T: np.ndarray, rate_hz: int) -> np.ndarray:
    """Root mean square of 10 ms frames in dB of full scale, (F,); an incomplete frame is ignored."""
    size = max(1, round(rate_hz * FRAME_SEC))
    frames = len(wave_T) // size
    power_F = np.square(wave_T[: frames * size].reshape(frames, size).astype(np.float64)).mean(axis=1)
    return 10 * np.log10(power_F + 1e-12)


def _has_sound(level_F: np.ndarray) -> np.ndarray:
    """Which frames have sound, (F,), relative to the 95th percentile, so that a click does not count."""
    loud_db = float(np.percentile(level_F, 95)) if len(level_F) else FLOOR_DB
    return level_F > max(FLOOR_DB, loud_db - SILENT_BELOW_LOUD_DB)


def edges_sec(level_F: np.ndarray) -> tuple[float, float, float]:
    """Seconds of silence before the sound, of sound in between, and of silence after it."""
    places = np.flatnonzero(_has_sound(level_F))
    if not len(places):
        return len(level_F) * FRAME_SEC, 0.0, 0.0
    first, last = int(places[0]), int(places[-1])
    return first * FRAME_SEC, (last + 1 - first) * FRAME_SEC, (len(level_F) - 1 - last) * FRAME_SEC


def speech_level_db(level_F: np.ndarray) -> float:
    """Root mean square over the frames with sound, in dB of full scale."""
    power_F = 10 ** (level_F[_has_sound(level_F)] / 10)
    return float(10 * np.log10(power_F.mean()))


def clipped_share(wave_T: np.ndarray) -> float:
    """Fraction of samples in runs of three or more equal ones within 1 % of the peak.

    Relative to the peak, because a clipped sound may have been attenuated afterwards.
    """
    peak = float(np.abs(wave_T).max(initial=0.0))
    if not peak:
        return 0.0
    same_T = np.diff(wave_T) == 0
    # Starts and ends of runs of equal samples.
    padded = np.concatenate([[0], same_T.astype(np.int8), [0]])
    starts, stops = np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1)
    lengths = stops - starts + 1
    at_peak = np.abs(wave_T[starts]) >= 0.99 * peak
    return float(lengths[at_peak & (lengths >= _FLAT_RUN)].sum() / len(wave_T))
