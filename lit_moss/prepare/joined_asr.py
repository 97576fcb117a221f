"""Recognises short sounds several at a time: Whisper computes 30 s whatever the length of a sound.

sound ─ 0.5 s of silence ─ sound ─ 0.5 s ─ …     one window; the times of its words say whose they are
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lit_moss.audio import rates
from lit_moss.hub.whisper import open_whisper

WINDOW_SEC = 29.0  # a second less than Whisper's
GAP_SEC = 0.5
_RATE_HZ = rates.TOKENIZER_RATE_HZ


class JoinedAsr:
    """A Whisper that recognises one sound, or several in one window; greedy, without a prompt.

    Args:
        name: See `lit_moss.hub.whisper.open_whisper`, as the others.
        device: auto, cpu or cuda.
        threads: Threads of one call.
        compute_type: Of CTranslate2.
    """

    def __init__(self, name: str, device: str, threads: int, compute_type: str) -> None:
        self._model: Any = open_whisper(name, device, threads, compute_type)

    def alone(self, wave: np.ndarray, lang: str) -> str:
        """Transcript of samples at 16 kHz, float32 (T,)."""
        # In a longer sound its time stamps say where the next window begins; without them it would begin in
        # the middle of a word.
        is_one_window = len(wave) <= WINDOW_SEC * _RATE_HZ
        segments = self._segments(wave, lang, without_timestamps=is_one_window)
        return " ".join(segment.text.strip() for segment in segments)

    def joined(self, waves: Sequence[np.ndarray], lang: str) -> list[str]:
        """Transcripts of sounds of one language, several in each window."""
        texts: list[str] = []
        for group in windows(waves):
            if len(group) == 1:
                texts.append(self.alone(group[0], lang))
            else:
                texts += self._window(group, lang)
        return texts

    def _window(self, waves: Sequence[np.ndarray], lang: str) -> list[str]:
        gap = np.zeros(round(GAP_SEC * _RATE_HZ), dtype=np.float32)
        ends_sec = np.cumsum([len(wave) + len(gap) for wave in waves]) / _RATE_HZ
        borders = list(ends_sec - GAP_SEC / 2)
        pieces = [piece for wave in waves for piece in (wave, gap)]
        texts = [""] * len(waves)
        for segment in self._segments(np.concatenate(pieces), lang, word_timestamps=True):
            for word in segment.words or ():
                place = bisect_left(borders, (word.start + word.end) / 2)
                texts[min(place, len(texts) - 1)] += word.word
        return [text.strip() for text in texts]

    def _segments(self, wave: np.ndarray, lang: str, **options: bool) -> Iterator[Any]:
        segments, _ = self._model.transcribe(
            wave, language=lang, beam_size=1, temperature=0.0, condition_on_previous_text=False, **options
        )
        return segments


def windows(waves: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Consecutive sounds that fit into a window together; a longer one is alone."""
    group: list[np.ndarray] = []
    seconds = 0.0
    for wave in waves:
        length_sec = len(wave) / _RATE_HZ + GAP_SEC
        if group and seconds + length_sec > WINDOW_SEC:
            yield group
            group, seconds = [], 0.0
        group.append(wave)
        seconds += length_sec
    if group:
        yield group
