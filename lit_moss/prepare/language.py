"""Scripts and words of a text, without a model."""

import re
import unicodedata
from functools import lru_cache
from typing import Any

from lit_moss.errors import UserError

# Scripts that languages are written in, by the first word of their letters' Unicode names; other languages
# are written in Latin letters.
_SCRIPTS = {
    **dict.fromkeys(("zh", "yue"), ("CJK",)),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "ko": ("HANGUL", "CJK"),
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk", "mn", "tg", "ba", "tt"), ("CYRILLIC",)),
    **dict.fromkeys(("sr", "uz", "az", "kk"), ("CYRILLIC", "LATIN")),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "sd"), ("ARABIC",)),
    **dict.fromkeys(("he", "yi"), ("HEBREW",)),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), ("DEVANAGARI",)),
    **dict.fromkeys(("bn", "as"), ("BENGALI",)),
    "el": ("GREEK",), "th": ("THAI",), "lo": ("LAO",), "km": ("KHMER",), "my": ("MYANMAR",),
    "ka": ("GEORGIAN",), "hy": ("ARMENIAN",), "am": ("ETHIOPIC",), "ta": ("TAMIL",), "te": ("TELUGU",),
    "kn": ("KANNADA",), "ml": ("MALAYALAM",), "gu": ("GUJARATI",), "pa": ("GURMUKHI",),
    "si": ("SINHALA",), "bo": ("TIBETAN",),
}  # fmt: skip
# Written without spaces: one letter counts as a word.
_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}


@lru_cache(maxsize=4096)
def script_of(letter: str) -> str:
    """Script of a letter: LATIN, CJK, CYRILLIC …; empty for digits, punctuation and marks."""
    if not letter.isalpha():
        return ""
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0]


def words_of(text: str) -> list[str]:
    """Words in lower case without punctuation.

    A letter of a script that is written without spaces (Chinese, Japanese, Thai …) is a word.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    words: list[str] = []
    for run in re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text):
        start = 0
        for i, letter in enumerate(run):
            if script_of(letter) in _UNSPACED:
                words += [run[start:i], letter]
                start = i + 1
        words.append(run[start:])
    return [word for word in words if word]


def is_unspaced(words: list[str]) -> bool:
    """Whether most of the words are letters of a script that is written without spaces."""
    return 2 * sum(script_of(word[0]) in _UNSPACED for word in words) > len(words)


def script_share(words: list[str], language: str) -> float | None:
    """Share of words, numbers left out, that are in the script of a language; None without such words."""
    expected = _SCRIPTS.get(language, ("LATIN",))
    scripts = [script_of(word[0]) for word in words if word[0].isalpha()]
    return sum(script in expected for script in scripts) / len(scripts) if scripts else None


def simplified(text: str) -> str:
    """Chinese in simplified characters (OpenCC, t2s)."""
    return _opencc().convert(text)


@lru_cache(maxsize=1)
def _opencc() -> Any:
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise UserError("Chinese transcripts need OpenCC: pip install 'lit-moss[prepare]'") from error
    return OpenCC("t2s")
