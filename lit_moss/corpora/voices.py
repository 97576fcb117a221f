"""The voices from the package index: hibari (English) and Kokoro-82M (English and Chinese).

Both are onnxruntime models that run on the CPU and generate 24 kHz audio. hibari is a dependency that
includes its weights; those of Kokoro are downloaded on first use (`embedded:kokoro`). The same text, speed,
seed and number of threads give the same samples.

    English text ── hibari's phonemes ─┐
                                       ├─ tokens ── Kokoro, one of its voices ── samples
    Chinese text ── misaki's phonemes ─┘            hibari speaks English by itself

Kokoro v1.0 has one alphabet for all languages, so it also speaks English words within a Chinese text.
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
KOKORO_MAX_TOKENS = 509  # a voice's style table has one row for each length from 0 to 509 tokens
_ENGLISH_RUN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ](?:[A-Za-zÀ-ÖØ-öø-ɏ'’ -]*[A-Za-zÀ-ÖØ-öø-ɏ'’])?")


def hibari_version() -> str:
    """Returns the version of the installed `hibari-tts`.

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
        threads: Number of threads of onnxruntime.
    """

    speaker = "hibari-heart"

    def __init__(self, threads: int = 1) -> None:
        hibari_version()
        from hibari import Hibari

        self._hibari = Hibari(threads=threads)

    def speak(self, text: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """Speaks a text; returns samples (T,) at 24 kHz, float32.

        Args:
            text: English text in spoken form.
            speed: Relative pace; 1: normal, 2: twice as fast.
            seed: Seed of the model's noise.
        """
        return self._hibari(text, speed=speed, seed=seed)


class Kokoro:
    """Kokoro-82M, int8: one model, many voices.

    Args:
        threads: Number of threads of onnxruntime; 0: one per core.
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
        """Phonemes -> tokens; phonemes unknown to the model are dropped (see `unknown`)."""
        return [self._vocabulary[phoneme] for phoneme in phonemes if phoneme in self._vocabulary]

    def unknown(self, phonemes: str) -> str:
        """Returns the phonemes unknown to the model, including punctuation but not spaces."""
        return "".join(p for p in phonemes if p not in self._vocabulary and not p.isspace())

    def speak(self, tokens: list[int], voice: str, speed: float = 1.0) -> np.ndarray:
        """Speaks n tokens with row n of the voice's style table; returns samples (T,) at 24 kHz, float32.

        Args:
            tokens: At most `KOKORO_MAX_TOKENS` tokens, without the zeros added at both ends.
            voice: One of `KOKORO_ENGLISH_VOICES` and `KOKORO_CHINESE_VOICES`.
            speed: Relative pace; 1: normal, 2: twice as fast.
        """
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
            "style": self._style(voice)[len(tokens)],
            "speed": np.full(1, speed, dtype=np.float32),
        }
        return np.asarray(self._session.run(None, inputs)[0]).reshape(-1)

    def _style(self, voice: str) -> np.ndarray:
        """Style table (510, 1, 256) of a voice."""
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
        """Phonemes of English text, from hibari's lexicon and its network for unknown words."""
        return " ".join(self._hibari.phonemize(text))

    def chinese(self, text: str) -> str:
        """Phonemes of Chinese text, from jieba's words and their pinyin; Latin words are spoken as English.

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
    """Languages that a Kokoro voice speaks."""
    return ("zh",) if voice in KOKORO_CHINESE_VOICES else ("en",) if voice in KOKORO_ENGLISH_VOICES else ()
