"""Text normalisation for CTC and for scoring. The rules, in order:

1. Unicode NFKC: full-width letters, ligatures and compatibility signs become plain ones.
2. Lower case.
3. Accents are dropped from Latin letters (é -> e, ø -> o, ß -> ss); typographic apostrophes become '; soft
   hyphens go.
4. Kept: a-z, digits, the apostrophe inside a word, and Chinese characters (CJK ideographs).
5. Everything else - punctuation, symbols, other scripts - becomes a space; spaces are collapsed.
6. Spaces beside a Chinese character are dropped: Chinese is written without them.
"""

import re
import unicodedata

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_APOSTROPHES = str.maketrans({c: "'" for c in "\u2018\u2019\u02bc\u00b4\u0060"})
_LETTERS = str.maketrans(
    {
        "ß": "ss",
        "æ": "ae",
        "œ": "oe",
        "ø": "o",
        "ł": "l",
        "đ": "d",
        "ð": "d",
        "þ": "th",
        "ı": "i",
        "\u00ad": "",
    }
)
_ACCENTS = re.compile("[\u0300-\u036f]")
_OTHER = re.compile(f"[^a-z0-9'{_HAN}]+")
_LONE_APOSTROPHE = re.compile(r"(?<![a-z0-9])'+|'+(?![a-z0-9])")
_SPACE_AT_HAN = re.compile(f"(?<=[{_HAN}]) | (?=[{_HAN}])")


def normalise(text: str) -> str:
    """Normalised text by the rules above; may be empty."""
    # Apostrophe look-alikes first: NFKC would turn an acute accent into a space and a combining mark.
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower().translate(_LETTERS)
    text = _ACCENTS.sub("", unicodedata.normalize("NFD", text))
    text = _OTHER.sub(" ", _LONE_APOSTROPHE.sub(" ", text))
    return _SPACE_AT_HAN.sub("", " ".join(text.split()))
