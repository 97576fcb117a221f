"""The language of a text, by its script: English or Chinese."""

import unicodedata

MIN_HAN_SHARE = 0.3


def han_share(text: str) -> float:
    """Share of Chinese characters among the letters, 0 to 1; a Latin word counts as one letter.

    A Chinese character carries about as much as a word, so that names in Latin letters do not outweigh it.
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
    """Whether it is a Chinese character (a CJK ideograph or 〇)."""
    n = ord(character)
    return (
        0x4E00 <= n <= 0x9FFF
        or 0x3400 <= n <= 0x4DBF
        or 0xF900 <= n <= 0xFAFF
        or 0x20000 <= n <= 0x3FFFF
        or n == 0x3007
    )


def text_language(text: str, min_han_share: float = MIN_HAN_SHARE) -> str:
    """`zh` if at least this share of the words are Chinese characters (see `han_share`), else `en`.

    Only these two are told apart: a French or Japanese text gets one of them. `other_letters` finds most of
    those.
    """
    return "zh" if han_share(text) >= min_han_share else "en"


def other_letters(text: str) -> float:
    """Share of letters that are neither Latin nor Chinese, 0 to 1."""
    letters = [c for c in text if unicodedata.category(c)[0] == "L"]
    other = sum(
        not is_han(c) and not unicodedata.name(c, "").startswith(("LATIN", "FULLWIDTH LATIN"))
        for c in letters
    )
    return other / len(letters) if letters else 0.0
