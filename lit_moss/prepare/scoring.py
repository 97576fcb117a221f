"""Compares spoken text with a recogniser's transcript, both in spoken form."""

import re

from lit_moss.data.transcripts import edit_distance, normalise
from lit_moss.prepare.english_folding import folded_numbers
from lit_moss.prepare.language import simplified
from lit_moss.prepare.spoken import spoken

_SAME_WORDS = {
    "okay": "ok", "mr": "mister", "mrs": "missus", "dr": "doctor", "messrs": "messieurs",
    "alright": "all right", "grey": "gray",
}  # fmt: skip
_LETTERS = re.compile(r"(?<![\w'’])[A-Z](?:[ -][A-Z])+(?![\w'’])")  # U S, which ASR writes as US
# The pronouns 他, 她 and 它 are pronounced alike.
_SAME_CHARACTERS = str.maketrans(
    {
        "著": "着",
        "幺": "一",
        "〇": "零",
        "两": "二",
        "妳": "你",
        "她": "他",
        "它": "他",
        "牠": "他",
        "祂": "他",
    }
)


def scoring_form(text: str, lang: str) -> str:
    """The form in which a reference and a transcript are compared.

    Both `2.5%` and `two point five percent` become the same: spoken form (`spoken`), lower case, without
    punctuation and accents (`normalise`). English numbers are normalised further: `twelve hundred` and
    `1,200`, `a hundred and five` and `one hundred five` become the same; consecutive single letters are one
    word (`U S`, `US`). Chinese: simplified by OpenCC's `t2s`, then 著 as 着, 甚么 as 什么, 两 as 二, 幺 as
    一, 她 and 它 as 他.

    Args:
        text: Any text.
        lang: en or zh.

    Returns:
        Words separated by spaces; Chinese without spaces. May be "".

    Raises:
        UserError: if the language is not supported, or the extra `prepare` is missing.
    """
    if lang == "zh":
        text = simplified(text)
        text = normalise(spoken(text, lang).translate(_SAME_CHARACTERS)).replace("甚么", "什么")
        return text
    said = _LETTERS.sub(lambda match: re.sub("[ -]", "", match[0]), spoken(text, lang))
    said = " ".join(_SAME_WORDS.get(word, word) for word in normalise(said).split())
    return " ".join(folded_numbers(said.replace("per cent", "percent").split()))


def error_counts(reference: str, hypothesis: str, lang: str) -> tuple[int, int]:
    """Number of edits (substitutions, deletions, insertions) and of reference words, both in `scoring_form`.

    In Chinese, characters are counted as words, but a word in Latin letters counts as one. There may be more
    edits than words. A reference without words cannot be compared: this is a fault of the reference, not a
    perfect transcript.
    """
    expected, recognised = (_tokens(scoring_form(text, lang)) for text in (reference, hypothesis))
    return edit_distance(expected, recognised), len(expected)


def _tokens(form: str) -> list[str]:
    return re.findall(r"[a-z0-9']+|\S", form)
