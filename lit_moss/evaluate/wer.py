"""Word error rates as commonly reported: exactly by Seed-TTS-Eval's rules, and after normalisation.

`seed`: punctuation (that of zhon and ASCII) is deleted except `'`, and pairs of spaces become one. English is
lower-cased; Chinese is split into characters, with Latin letters unchanged. Numbers are not normalised: "50
turns" for "fifty turns" is an error. Hyphens are deleted, so that well-known equals wellknown.

`normalised`: Whisper's English normaliser on both sides. Chinese: NFKC, simplified characters, digits written
out, lower case, only letters and digits, split into characters.

In both, Chinese transcripts are converted to simplified characters (OpenCC's `t2s`; Seed-TTS-Eval uses
zhconv, which also replaces some words). A rate is errors divided by reference words, and may exceed 1; for a
reference without words it is the number of errors, as in jiwer. Sources:
github.com/BytedanceSpeech/seed-tts-eval, package whisper-normalizer.
"""

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lit_moss.data.transcripts import edit_distance
from lit_moss.errors import UserError
from lit_moss.prepare.language import simplified

EXTRA = "pip install 'lit-moss[evaluate]'"
Mode = Literal["seed", "normalised"]
MODES: tuple[Mode, ...] = ("seed", "normalised")
# Code points of `zhon.hanzi.punctuation` 2.1.1 as ranges; they include neither U+201A nor the hyphen U+2010.
_ZHON = (
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff64\u3000-\u3003\u3008-\u3011\u3014-\u301f\u3030"
    "\u303e\u303f\u2013\u2014\u2018\u2019\u201b-\u201f\u2026\u2027\ufe4f\ufe51\ufe54\u00b7"
)
_SEED_PUNCTUATION = re.compile(f"[{_ZHON}{re.escape(string.punctuation.replace(chr(39), ''))}]")


@dataclass(frozen=True)
class Errors:
    """Word errors of one clip.

    Args:
        errors: Number of substitutions, deletions and insertions.
        words: Number of words of the reference; for Chinese, of characters.
    """

    errors: int
    words: int

    @property
    def rate(self) -> float:
        """Errors divided by words; the number of errors if the reference has no words."""
        return self.errors / max(1, self.words)


def errors(reference: str, hypothesis: str, language: str, mode: Mode) -> Errors:
    """Word errors of a transcript.

    Args:
        reference: Reference text.
        hypothesis: Recognised text.
        language: en or zh.
        mode: Set of rules, see the module docstring.
    """
    if language == "zh" and mode == "seed":
        hypothesis = simplified(hypothesis)
    words = _seed_words if mode == "seed" else _normalised_words
    expected, recognised = words(reference, language), words(hypothesis, language)
    return Errors(edit_distance(expected, recognised), len(expected))


def mean_rate(counts: Sequence[Errors]) -> float:
    """Mean of the clips' rates: what Seed-TTS-Eval reports, x 100."""
    return sum(count.rate for count in counts) / len(counts)


def pooled_rate(counts: Sequence[Errors]) -> float:
    """Total errors divided by total words."""
    return sum(count.errors for count in counts) / max(1, sum(count.words for count in counts))


def check_packages(language: str) -> None:
    """Loads what the normalisation of a language needs, before anything expensive starts.

    Raises:
        UserError: if a package is missing.
    """
    for mode in MODES:
        errors("a", "a", language, mode)


def _seed_words(text: str, language: str) -> list[str]:
    text = _SEED_PUNCTUATION.sub("", text).replace("  ", " ")
    text = " ".join(text) if language == "zh" else text.lower()
    # As jiwer does before comparing: multiple white space becomes one space, and words end only at spaces.
    return [word for word in re.sub(r"\s\s+", " ", text).strip().split(" ") if word]


def _normalised_words(text: str, language: str) -> list[str]:
    if language != "zh":
        return _english_normaliser()(text).split()
    text = _chinese_numbers(simplified(unicodedata.normalize("NFKC", text)).replace("〇", "零"))
    return [c for c in text.lower() if unicodedata.category(c)[0] in "LMN"]


@cache
def _english_normaliser() -> Any:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise UserError(f"normalised word errors need whisper-normalizer: {EXTRA}") from error
    return EnglishTextNormalizer()


def _chinese_numbers(text: str) -> str:
    """Converts Arabic digits to Chinese numerals; a number that cn2an cannot read is not changed."""
    try:
        import cn2an
    except ImportError as error:
        raise UserError(f"normalised word errors of Chinese need cn2an: {EXTRA}") from error
    try:
        return cn2an.transform(text, "an2cn")
    except ValueError:
        return text
