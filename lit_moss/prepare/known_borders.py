"""Utterances with known word borders, to measure the delay of an aligner.

The embedded voice speaks words one by one, which are joined with pauses of random length. A second aligner
would have errors of its own: at pauses in LJ Speech, Whisper-base puts the border 80 ms too early
(`experiments.benches.align`).
"""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from lit_moss.corpora.everyday import RATE_HZ, Voice, hibari, sentences
from lit_moss.data.interleave import Word, document_rng
from lit_moss.prepare.aligners import Aligner
from lit_moss.prepare.forced_alignment import CannotAlign, TimedWord
from lit_moss.prepare.words import split_words

SENTENCES = 12
_LEAST_SCORE = 0.3  # below this, the aligner does not know the language of the voice
_EVERY = 37  # every 37th sentence of the embedded corpus is used
_QUIET = 0.01  # maximum amplitude of silence at the ends of a word
_MARGIN_SEC = 0.005


@dataclass(frozen=True)
class BorderErrors:
    """Borders found by an aligner minus the known ones, in seconds.

    Args:
        errors: Errors of the middles of gaps between words, where recordings are cut.
        score: Median of the words' scores.
    """

    errors: list[float]
    score: float

    @property
    def shift_sec(self) -> float:
        """Median error in seconds, rounded to ms; 0 if the aligner does not know the language."""
        return round(median(self.errors), 3) if self.errors and self.score >= _LEAST_SCORE else 0.0


def joined_words(text: str, name: str, voice: Voice) -> tuple[np.ndarray, list[Word]]:
    """Words of an English text, spoken one by one: samples (T,) at 24 kHz, and their true times.

    Pauses are 0 to 150 ms, one in five 200 to 500 ms.

    Args:
        text: English text.
        name: Seed of the pauses.
        voice: Voice that speaks them.
    """
    rng = document_rng(0, name)
    parts: list[np.ndarray] = []
    words: list[Word] = []
    samples = 0
    for word in split_words(text):
        pause_sec = rng.uniform(0.0, 0.15) if rng.random() < 0.8 else rng.uniform(0.2, 0.5)
        wave_T = _trimmed(voice.speak(word, 0))
        parts += [np.zeros(round(pause_sec * RATE_HZ), np.float32), wave_T]
        start = samples + len(parts[-2])
        samples = start + len(wave_T)
        words.append((word, start / RATE_HZ, samples / RATE_HZ))
    joined_T = np.concatenate([*parts, np.zeros(RATE_HZ // 4, np.float32)])
    # Digital silence does not occur in recordings.
    return joined_T + rng.normal(0, 1e-4, len(joined_T)).astype(np.float32), words


def _trimmed(wave_T: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(wave_T) > _QUIET)
    margin = round(_MARGIN_SEC * RATE_HZ)
    return wave_T[max(0, loud[0] - margin) : loud[-1] + margin] if len(loud) else wave_T


def cut_errors(found: Sequence[TimedWord | None], words: Sequence[Word]) -> Iterable[float]:
    """Middles of the gaps between adjacent words, found minus true."""
    for (a, b), ((_, _, end), (_, start, _)) in zip(pairwise(found), pairwise(words), strict=True):
        if a is not None and b is not None:
            yield (a.end_sec + b.start_sec) / 2 - (end + start) / 2


def measure_shift(aligner: Aligner, count: int = SENTENCES) -> BorderErrors:
    """Errors of an aligner's word borders in utterances of the embedded voice.

    Args:
        aligner: A CTC aligner.
        count: Number of utterances; 12 take a few seconds.

    Raises:
        UserError: if the voice is not installed.
    """
    import soundfile

    voice = hibari()
    errors: list[float] = []
    scores: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(sentences()[: count * _EVERY : _EVERY]):
            wave_T, words = joined_words(text, f"known borders {number}", voice)
            path = Path(folder) / f"{number}.wav"
            soundfile.write(path, wave_T, RATE_HZ)
            try:
                found = aligner.align({"audio_filepath": str(path)}, [word for word, _, _ in words]).words
            except CannotAlign:
                continue
            errors += cut_errors(found, words)
            scores += [word.score for word in found if word is not None and word.score is not None]
    return BorderErrors(errors, median(scores) if scores else 0.0)
