"""Long recordings with known speech: clips, with silence, noise or music-like tones between them.

What is known to be speech of a clip (`Joined.speech`): from its first to its last 10 ms that are louder than
-35 dB below the clip's loud parts (95th percentile), less the pauses inside of `PAUSE_SEC` or longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lit_moss.audio import io
from lit_moss.audio.features import resample

RATE_HZ = 16_000
FRAME = RATE_HZ // 100
PAUSE_SEC = 0.5
QUIETER_DB = -35.0
Spans = list[tuple[float, float]]


@dataclass(frozen=True)
class Joined:
    """One recording.

    Args:
        path: The sound file.
        seconds: Its length.
        clips: (start, end) of each clip, with the silence at its own edges.
        names: Of the clips.
        speech: (start, end) of what is speech, see the head of this file.
    """

    path: Path
    seconds: float
    clips: Spans
    names: list[str]
    speech: Spans


def join_clips(
    clips: Sequence[Path], path: Path, longest_sec: float = 600.0, seed: int = 0, rate_hz: int = RATE_HZ
) -> Joined:
    """Writes as many clips as fit into `longest_sec`, with 1 to 5 s of something else between them."""
    generator = np.random.default_rng(seed)
    pieces, at = [], 0
    spans: Spans = []
    names: list[str] = []
    speech: Spans = []
    for i, clip in enumerate(clips):
        gap = _between(i, int(generator.uniform(1, 5) * RATE_HZ), generator)
        wave = io.read(clip, RATE_HZ).numpy()
        if (at + len(gap) + len(wave)) / RATE_HZ > longest_sec - 5:
            break
        start = at + len(gap)
        pieces += [gap, wave]
        at = start + len(wave)
        spans.append((start / RATE_HZ, at / RATE_HZ))
        names.append(clip.stem)
        speech += [(start / RATE_HZ + low, start / RATE_HZ + high) for low, high in speech_of(wave)]
    tail = _between(len(spans), int(generator.uniform(1, 5) * RATE_HZ), generator)
    samples = np.concatenate([*pieces, tail]).astype(np.float32)
    io.write(path, resample(torch.from_numpy(samples), RATE_HZ, rate_hz), rate_hz)
    return Joined(path, len(samples) / RATE_HZ, spans, names, speech)


def speech_of(wave: np.ndarray) -> Spans:
    """What is speech in a clip (T,) at 16 kHz, in seconds."""
    frames = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
    level_db = 10 * np.log10((frames**2).mean(axis=1) + 1e-12)
    loud = np.flatnonzero(level_db > np.percentile(level_db, 95) + QUIETER_DB)
    breaks = np.flatnonzero(np.diff(loud) * FRAME >= PAUSE_SEC * RATE_HZ)
    starts, ends = loud[np.r_[0, breaks + 1]], loud[np.r_[breaks, len(loud) - 1]] + 1
    return [(s * FRAME / RATE_HZ, e * FRAME / RATE_HZ) for s, e in zip(starts, ends, strict=True)]


def precision_recall(found: Spans, known: Spans, collar_sec: float = 0.0) -> tuple[float, float]:
    """Share of the time found that is known, and of the time known that is found, in steps of 1 ms.

    Args:
        found: Spans in seconds.
        known: Spans in seconds.
        collar_sec: Time around each known span that counts neither as right nor as wrong.
    """
    steps = int(1000 * max(end for _, end in [*found, *known]) + 1000 * collar_sec) + 2
    is_found, is_known, near = (_mask(s, steps) for s in (found, known, _wider(known, collar_sec)))
    both = (is_found & is_known).sum()
    return both / (is_found & (is_known | ~near)).sum(), both / is_known.sum()


def _wider(spans: Spans, by: float) -> Spans:
    return [(max(0.0, start - by), end + by) for start, end in spans]


def _mask(spans: Spans, steps: int) -> np.ndarray:
    mask = np.zeros(steps, bool)
    for start, end in spans:
        mask[round(1000 * start) : round(1000 * end)] = True
    return mask


def _between(i: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Silence, noise and tones by turns."""
    kinds = (np.zeros(samples), _noise(samples, generator), _tones(samples, generator))
    return kinds[i % len(kinds)]


def _noise(samples: int, generator: np.random.Generator) -> np.ndarray:
    """Pink noise of -45 to -25 dB."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum))))
    wave = np.fft.irfft(spectrum, samples)
    return wave / wave.std() * 10 ** (generator.uniform(-45, -25) / 20)


def _tones(samples: int, generator: np.random.Generator) -> np.ndarray:
    """Chords of three notes with harmonics, struck twice a second, of -22 dB."""
    wave, length = np.zeros(samples), RATE_HZ // 2
    t = np.arange(length) / RATE_HZ
    for begin in range(0, samples, length):
        root = 220 * 2 ** (generator.integers(0, 13) / 12)
        chord = np.zeros(length)
        for step in (0, 4, 7):
            for harmonic in range(1, 6):
                hz = root * 2 ** (step / 12) * harmonic
                chord += np.sin(2 * np.pi * hz * t) / harmonic**1.5
        part = (chord * np.minimum(1, t / 0.01) * np.exp(-3 * t))[: samples - begin]
        wave[begin : begin + len(part)] = part
    return wave / wave.std() * 10 ** (-22 / 20)
