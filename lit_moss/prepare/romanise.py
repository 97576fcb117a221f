"""Converts Chinese characters to Latin letters, for acoustic models with only those in their vocabulary.

Each run of Han characters is read by pypinyin as a whole, because the reading of a character depends on its
phrase: 银行 is yin hang, 行 alone is xing. Numerals are treated like other characters. A general romaniser
such as uroman turns 一 into the digit 1, for which an acoustic model of letters has no symbol.
"""

from collections.abc import Sequence
from itertools import groupby

from lit_moss.errors import UserError
from lit_moss.prepare.language import is_han


def romanise(words: Sequence[str]) -> list[str]:
    """Words whose Han characters are replaced by syllables without tones; everything else is unchanged.

    Adjacent words that consist of Han characters are read as one run: ["行", "长"] is ["hang", "zhang"]. v
    (in 女, 绿) is written u.

    Args:
        words: Words without spaces and punctuation.

    Raises:
        UserError: if there are Han characters and pypinyin is not installed.
    """
    romanised: list[str] = []
    for has_only_han, run in groupby(words, key=lambda word: bool(word) and all(map(is_han, word))):
        parts = list(run)
        if has_only_han:
            syllables = iter(_syllables("".join(parts)))
            romanised += ["".join(next(syllables) for _ in word) for word in parts]
        else:
            romanised += ["".join(_romanise_mixed(word)) for word in parts]
    return romanised


def _romanise_mixed(word: str) -> list[str]:
    runs = ((han, "".join(run)) for han, run in groupby(word, key=is_han))
    return ["".join(_syllables(run)) if han else run for han, run in runs]


def _syllables(run: str) -> list[str]:
    """One syllable per Han character; a character without a known reading is kept."""
    try:
        from pypinyin import lazy_pinyin
    except ImportError as error:
        raise UserError(
            "aligning Chinese to Latin letters needs pypinyin: pip install 'lit-moss[prepare]'"
        ) from error
    syllables = lazy_pinyin(run)
    if len(syllables) != len(run):  # adjacent characters without a reading are joined
        syllables = [syllable for character in run for syllable in lazy_pinyin(character)]
    return [syllable.replace("v", "u") for syllable in syllables]
