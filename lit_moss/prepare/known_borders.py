"""Utterances whose word borders are known, and how late an aligner is on them.

Words are spoken one by one by the embedded voice and joined with pauses of random length between them. A
second aligner has errors of its own: at pauses of LJ Speech, Whisper-base puts the border 80 ms too early
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
_LEAST_SCORE = 0.3  # below, the aligner does not know the language of the voice
_EVERY = 37  # sentences of the embedded corpus apart
_QUIET = 0.01  # amplitude up to which the ends of a word are silence
_MARGIN_SEC = 0.005


@dataclass(frozen=True)
class BorderErrors:
    """Borders that an aligner found minus the known ones, in seconds.

    Args:
        errors: Of the middles of the gaps between two words, where a recording is cut.
        score: Median of the words' scores.
    """

    errors: list[float]
    score: float

    @property
    def shift_sec(self) -> float:
        """Median error, to the millisecond; 0 if the aligner does not know the language."""
        return round(median(self.errors), 3) if self.errors and self.score >= _LEAST_SCORE else 0.0


def joined_words(text: str, name: str, voice: Voice) -> tuple[np.ndarray, list[Word]]:
    """Words of an English text, spoken one by one: samples (T,) at 24 kHz, and their true times.

    Pauses are 0 to 150 ms, one in five 200 to 500 ms.

    Args:
        text: English.
        name: Seed of the pauses.
        voice: Speaks them.
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
    # Digital silence occurs in no recording.
    return joined_T + rng.normal(0, 1e-4, len(joined_T)).astype(np.float32), words


def _trimmed(wave_T: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(wave_T) > _QUIET)
    margin = round(_MARGIN_SEC * RATE_HZ)
    return wave_T[max(0, loud[0] - margin) : loud[-1] + margin] if len(loud) else wave_T


def cut_errors(found: Sequence[TimedWord | None], words: Sequence[Word]) -> Iterable[float]:
    """Middles of the gaps between neighbouring words, found minus true."""
    for (a, b), ((_, _, end), (_, start, _)) in zip(pairwise(found), pairwise(words), strict=True):
        if a is not None and b is not None:
            yield (a.end_sec + b.start_sec) / 2 - (end + start) / 2


def measure_shift(aligner: Aligner, count: int = SENTENCES) -> BorderErrors:
    """Errors of an aligner's word borders in utterances of the embedded voice.

    Args:
        aligner: A CTC aligner.
        count: Utterances; with 12 it takes seconds.

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
