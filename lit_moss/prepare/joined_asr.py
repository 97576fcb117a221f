"""Recognises several short sounds at a time: Whisper always computes 30 s, whatever the length of the audio.

sound ─ 0.5 s of silence ─ sound ─ 0.5 s ─ …     one window; word times tell to which sound a word belongs
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lit_moss.audio import rates
from lit_moss.hub.whisper import open_whisper

WINDOW_SEC = 29.0  # one second less than Whisper's
GAP_SEC = 0.5
_RATE_HZ = rates.TOKENIZER_RATE_HZ


AsrWord = tuple[str, float, float, float]  # word, start and end in seconds, probability


@dataclass
class Heard:
    """Recognised text of a sound.

    Args:
        text: Transcript.
        words: Words, with times relative to the start of the sound.
    """

    text: str = ""
    words: list[AsrWord] = field(default_factory=list)


class JoinedAsr:
    """A Whisper model that recognises one sound, or several in one window; greedy, without a prompt.

    Args:
        name: Name of the model, see `lit_moss.hub.whisper.open_whisper`.
        device: auto, cpu or cuda.
        threads: Number of threads per call.
        compute_type: CTranslate2's compute type, see `lit_moss.hub.whisper.open_whisper`.
    """

    def __init__(self, name: str, device: str, threads: int, compute_type: str) -> None:
        self._model: Any = open_whisper(name, device, threads, compute_type)

    def alone(self, wave: np.ndarray, lang: str) -> Heard:
        """Recognises samples at 16 kHz, float32 (T,)."""
        # For longer audio, the time stamps of segments determine where the next window begins; without them
        # it would begin within a word.
        return self._window([wave], lang)[0]

    def joined(self, waves: Sequence[np.ndarray], lang: str) -> list[Heard]:
        """Recognises sounds of one language, several in each window."""
        return [heard for group in windows(waves) for heard in self._window(group, lang)]

    def _window(self, waves: Sequence[np.ndarray], lang: str) -> list[Heard]:
        gap = np.zeros(round(GAP_SEC * _RATE_HZ), dtype=np.float32)
        ends_sec = np.cumsum([len(wave) + len(gap) for wave in waves]) / _RATE_HZ
        borders, starts_sec = list(ends_sec - GAP_SEC / 2), [0.0, *ends_sec[:-1]]
        pieces = [piece for wave in waves for piece in (wave, gap)]
        sounds = [Heard() for _ in waves]
        for segment in self._segments(np.concatenate(pieces) if len(waves) > 1 else waves[0], lang):
            for word in segment.words or ():
                place = min(bisect_left(borders, (word.start + word.end) / 2), len(sounds) - 1)
                start_sec, last_sec = starts_sec[place], len(waves[place]) / _RATE_HZ
                start, end = (
                    round(min(max(float(t) - start_sec, 0.0), last_sec), 3) for t in (word.start, word.end)
                )
                sounds[place].text += word.word
                sounds[place].words.append((word.word.strip(), start, end, round(float(word.probability), 4)))
        for sound in sounds:
            sound.text = sound.text.strip()
        return sounds

    def _segments(self, wave: np.ndarray, lang: str) -> Iterator[Any]:
        segments, _ = self._model.transcribe(
            wave, language=lang, beam_size=1, temperature=0.0, condition_on_previous_text=False,
            word_timestamps=True,
        )  # fmt: skip
        return segments


def windows(waves: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Groups consecutive sounds that fit into a window; a longer sound is alone."""
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
