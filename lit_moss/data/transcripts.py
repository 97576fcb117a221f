"""Text normalisation for CTC and for scoring, with one of two character sets.

`latin_chinese`, the default. Its rules, in order:

1. Unicode NFKC: full-width letters, ligatures and compatibility characters become plain ones.
2. Lower case.
3. Accents are removed from Latin letters (é -> e, ø -> o, ß -> ss); typographic apostrophes become '; soft
   hyphens are removed. The Chinese zero 〇 becomes 零, which is read alike: a vocabulary needs only one.
4. Kept: a-z, digits, the apostrophe inside a word, and Chinese characters (CJK ideographs, without 々).
5. Everything else - punctuation, symbols, other scripts - becomes a space; spaces are collapsed.
6. Spaces next to a Chinese character are dropped: Chinese is written without them.

`auto`, for every other script: NFKC, lower case, typographic apostrophes as above; every letter, mark and
digit is kept with its accents, so that a vocabulary has the characters that its manifests use. Apostrophes
inside a word are kept, invisible format characters are removed, everything else becomes a space; spaces next
to Chinese characters and kana are dropped.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from lit_moss.errors import UserError

Charset = Literal["latin_chinese", "auto"]
DEFAULT_CHARSET: Charset = "latin_chinese"

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
        "〇": "零",
        "\u00ad": "",
    }
)
_ACCENTS = re.compile("[\u0300-\u036f]")
_OTHER = re.compile(f"[^a-z0-9'{_HAN}]+")
_LONE_APOSTROPHE = re.compile(r"(?<![a-z0-9])'+|'+(?![a-z0-9])")
_SPACE_AT_HAN = re.compile(f"(?<=[{_HAN}]) | (?=[{_HAN}])")


_UNSPACED = _HAN + "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # and kana, for `auto`
_SPACE_AT_UNSPACED = re.compile(f"(?<=[{_UNSPACED}]) | (?=[{_UNSPACED}])")
_LONE_APOSTROPHE_AUTO = re.compile(r"(?<!\w)'+|'+(?!\w)")


def normalise(text: str, charset: Charset = DEFAULT_CHARSET) -> str:
    """Normalises text by the rules of the module docstring; the result may be empty."""
    if charset == "auto":
        return _keep_all_letters(text)
    text = _OTHER.sub(" ", _LONE_APOSTROPHE.sub(" ", _plain(text)))
    return _SPACE_AT_HAN.sub("", " ".join(text.split()))


def _plain(text: str) -> str:
    """Applies rules 1 to 3."""
    # Characters similar to apostrophes first: NFKC would turn an acute accent into a space and a combining
    # mark.
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower().translate(_LETTERS)
    return _ACCENTS.sub("", unicodedata.normalize("NFD", text))


def _keep_all_letters(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    text = unicodedata.normalize("NFKC", text)  # lower case of a few letters is not composed
    visible = ((c, unicodedata.category(c)) for c in text if unicodedata.category(c) != "Cf")
    text = "".join(c if category[0] in "LMN" or c == "'" else " " for c, category in visible)
    text = _LONE_APOSTROPHE_AUTO.sub(" ", text)
    return _SPACE_AT_UNSPACED.sub("", " ".join(text.split()))


def edit_distance(expected: Sequence[Hashable], recognised: Sequence[Hashable]) -> int:
    """Levenshtein distance (substitutions, deletions and insertions) of two lists of words or labels."""
    from torchaudio.functional import edit_distance as distance

    return distance(expected, recognised)


def lost_letters(text: str, charset: Charset = DEFAULT_CHARSET) -> str:
    """Letters and digits that `normalise` drops: those of scripts other than Latin and Chinese."""
    if charset == "auto" or text.isascii():
        return ""
    composed = unicodedata.normalize("NFC", _OTHER.sub(lambda match: match[0], _plain(text)))
    return "".join(c for c in composed if unicodedata.category(c)[0] in "LN" and _OTHER.match(c))


def report_losses(
    texts: Iterable[str], manifest: str | Path, charset: Charset = DEFAULT_CHARSET, max_share: float = 0.01
) -> str | None:
    """One line about letters and accents that normalisation drops from transcripts; None if there are none.

    Args:
        texts: Transcripts before normalisation.
        manifest: Name of the manifest, for the message.
        charset: Character set, see the module docstring.
        max_share: Fraction of dropped letters, 0 to 1, above which the manifest is rejected.

    Raises:
        UserError: if more than `max_share` of the letters are dropped.
    """
    lost: Counter[str] = Counter()
    kept = accents = 0
    for text in texts:
        lost.update(lost_letters(text, charset))
        kept += sum(map(str.isalnum, normalise(text, charset)))
        if charset != "auto" and not text.isascii():
            composed = unicodedata.normalize("NFC", text)
            accents += sum(bool(_ACCENTS.search(unicodedata.normalize("NFD", c))) for c in composed)
    count, total = lost.total(), lost.total() + kept
    start = f"{manifest}: charset {charset} drops"
    if not count:
        return f"{start} {accents} accents of the transcripts" if accents else None
    often = ", ".join(f"{letter} {number}" for letter, number in lost.most_common(5))
    text = f"{start} {count} of {total} letters of the transcripts "
    text += f"({count / total:.2%}), most often {often}" + (f", and {accents} accents" if accents else "")
    if count > max_share * total:
        raise UserError(
            f"{text}; expected at most {max_share:.2%} (data.max_lost_share): set data.charset to auto, "
            "which keeps the letters of every script, or raise the share"
        )
    return text
