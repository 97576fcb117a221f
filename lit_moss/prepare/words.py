"""Divides spoken text into words for alignment."""

import re
import unicodedata

from lit_moss.prepare.language import HAN

# One Chinese character, or a sequence of other letters, digits and apostrophes.
_WORD = re.compile(f"[{HAN}]|(?:(?![{HAN}])[^\\W_]|')+")
_APOSTROPHES = str.maketrans("\u2019\u02bc", "''")


def split_words(text: str) -> list[str]:
    """Words without punctuation: well-known is two words, a Chinese character is one.

    Case and accents are kept.
    """
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    return [word for found in _WORD.findall(text) if (word := found.strip("'"))]
