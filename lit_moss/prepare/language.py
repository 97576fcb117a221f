"""Detects language, scripts and words of a text, without a model."""

import re
import unicodedata
from functools import cache, lru_cache
from typing import Any, Literal

from lit_moss.errors import UserError

# Scripts of languages, by the first word of the Unicode names of their letters; other languages use Latin
# letters.
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
MIN_HAN_SHARE = 0.3
# Chinese characters, for a class of a regular expression: CJK ideographs, 々 and 〇.
HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAN_CHARACTER = re.compile(f"[{HAN}]")
# Written without spaces: each letter counts as a word.
_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}


@lru_cache(maxsize=4096)
def script_of(letter: str) -> str:
    """Script of a letter: LATIN, CJK, CYRILLIC …; "" for digits, punctuation and marks."""
    if not letter.isalpha():
        return ""
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0]


def words_of(text: str) -> list[str]:
    """Words in lower case without punctuation.

    In a script without spaces (Chinese, Japanese, Thai …) each letter is a word.
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
    """Whether most of the words are letters of a script without spaces."""
    return 2 * sum(script_of(word[0]) in _UNSPACED for word in words) > len(words)


def script_share(words: list[str], language: str) -> float | None:
    """Fraction of words, ignoring numbers, that are in the script of a language; None without such words."""
    expected = _SCRIPTS.get(language, ("LATIN",))
    scripts = [script_of(word[0]) for word in words if word[0].isalpha()]
    return sum(script in expected for script in scripts) / len(scripts) if scripts else None


def han_share(text: str) -> float:
    """Fraction of Chinese characters among the letters, 0 to 1; a Latin word counts as one letter.

    A Chinese character carries about as much information as a word, so names in Latin letters do not outweigh
    it.
    """
    han = latin = 0
    inside_word = False
    for character in text:
        if is_han(character):
            han += 1
            inside_word = False
        elif unicodedata.category(character)[0] in "LM":
            latin += not inside_word
            inside_word = True
        else:
            inside_word = inside_word and character in "'’-"
    return han / (han + latin) if han + latin else 0.0


def is_han(character: str) -> bool:
    """Whether it is a Chinese character, see `HAN`."""
    return _HAN_CHARACTER.fullmatch(character) is not None


def text_language(text: str, min_han_share: float = MIN_HAN_SHARE) -> str:
    """`zh` if at least this fraction of the words are Chinese characters (see `han_share`), otherwise `en`.

    Only these two are distinguished: French or Japanese text is assigned to one of them.
    """
    return "zh" if han_share(text) >= min_han_share else "en"


def simplified(text: str, rules: Literal["t2s", "tw2s"] = "t2s") -> str:
    """Converts Chinese to simplified characters with OpenCC; `tw2s` also maps Taiwanese variants."""
    # OpenCC does not accept half of a surrogate pair, which occurs in texts that were cut within an emoji.
    parts = re.split("([\ud800-\udfff]+)", text)
    return "".join(part if i % 2 else _opencc(rules).convert(part) for i, part in enumerate(parts))


@cache
def _opencc(rules: str) -> Any:
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise UserError("Chinese text needs OpenCC: pip install 'lit-moss[prepare]'") from error
    return OpenCC(rules)
