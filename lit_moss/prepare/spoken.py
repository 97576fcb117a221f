"""Written text as it is spoken: `In 1905` -> in nineteen oh five, `25%的人` -> 百分之二十五的人.

    spoken("May 6, 1990", "en")        'May sixth, nineteen ninety'
    spoken_words("In 1905.", "en")     [('In', ['In']), ('1905.', ['nineteen', 'oh', 'five.'])]
    unspeakable("Yes 🎉", "en")        '🎉'

English by own rules (`spoken_en`), Chinese by own rules and wetext (`spoken_zh`). Nothing is left out without
notice: `unspeakable` names the characters that no rule can say.
"""

from lit_moss.data.interleave import join_words
from lit_moss.errors import UserError
from lit_moss.prepare import spoken_en, spoken_zh
from lit_moss.prepare.spoken_rules import Unit

LANGUAGES = ("en", "zh")


def spoken_words(text: str, lang: str) -> list[Unit]:
    """Written tokens with the words they are spoken as.

    In English a token is what stands between spaces, in Chinese one character, a word in Latin letters or a
    number; what one rule reads together (`May 6, 1990`) is one token. Punctuation stays with its token, on
    both sides; a dash that stands alone belongs to the token before it.

    Args:
        text: Any text.
        lang: en or zh.

    Returns:
        Pairs (written token, spoken words). The written tokens joined (`lit_moss.data.interleave.join_words`)
        are the text; the spoken words joined in the same way are `spoken(text, lang)`. A token has no spoken
        words only if the whole text has none.

    Raises:
        UserError: for another language, or without the extra `prepare`.
    """
    if lang not in LANGUAGES:
        raise UserError(f"no spoken forms for language {lang!r}: expected one of {', '.join(LANGUAGES)}")
    return spoken_en.spoken_units(text) if lang == "en" else spoken_zh.spoken_units(text)


def spoken(text: str, lang: str) -> str:
    """The text as a voice says it, without digits and symbols; see `spoken_words`."""
    return join_words([word for _, words in spoken_words(text, lang) for word in words])


def unspeakable(text: str, lang: str) -> str:
    """Characters of a text that no rule can say, such as emoji and other scripts, each once; "" if none."""
    if lang not in LANGUAGES:
        raise UserError(f"no spoken forms for language {lang!r}: expected one of {', '.join(LANGUAGES)}")
    return spoken_en.unknown(text) if lang == "en" else spoken_zh.unknown(text)
