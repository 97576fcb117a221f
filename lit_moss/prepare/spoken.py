"""Converts written text to its spoken form: `In 1905` -> in nineteen oh five, `25%的人` -> 百分之二十五的人.

    spoken("May 6, 1990", "en")        'May sixth, nineteen ninety'
    spoken_words("In 1905.", "en")     [('In', ['In']), ('1905.', ['nineteen', 'oh', 'five.'])]
    unspeakable("Yes 🎉", "en")        '🎉'

English is handled by the rules in `spoken_en`, Chinese by rules and wetext in `spoken_zh`. Nothing is left
out silently: `unspeakable` returns the characters that no rule can handle.
"""

from lit_moss.data.interleave import join_words
from lit_moss.errors import UserError
from lit_moss.prepare import spoken_en, spoken_zh
from lit_moss.prepare.spoken_rules import Unit

LANGUAGES = ("en", "zh")


def spoken_words(text: str, lang: str) -> list[Unit]:
    """Written tokens with the words as which they are spoken.

    In English a token is the text between spaces; in Chinese it is a character, a word in Latin letters or a
    number. Text that one rule reads together (`May 6, 1990`) is one token. Punctuation stays with its token,
    on both sides; a separate dash belongs to the token before it.

    Args:
        text: Any text.
        lang: en or zh.

    Returns:
        Pairs (written token, spoken words). The written tokens, joined
        (`lit_moss.data.interleave.join_words`), are the text; the spoken words, joined in the same way, are
        `spoken(text, lang)`. A token has no spoken words only if the whole text has none.

    Raises:
        UserError: if the language is not supported, or the extra `prepare` is missing.
    """
    if lang not in LANGUAGES:
        raise UserError(f"no spoken forms for language {lang!r}: expected one of {', '.join(LANGUAGES)}")
    return spoken_en.spoken_units(text) if lang == "en" else spoken_zh.spoken_units(text)


def spoken(text: str, lang: str) -> str:
    """The spoken form of a text, without digits and symbols; see `spoken_words`."""
    return join_words([word for _, words in spoken_words(text, lang) for word in words])


def unspeakable(text: str, lang: str) -> str:
    """Distinct characters of a text that no rule can handle, such as emoji; "" if there are none."""
    if lang not in LANGUAGES:
        raise UserError(f"no spoken forms for language {lang!r}: expected one of {', '.join(LANGUAGES)}")
    return spoken_en.unknown(text) if lang == "en" else spoken_zh.unknown(text)
