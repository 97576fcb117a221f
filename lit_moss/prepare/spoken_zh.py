"""Chinese text as it is spoken."""

import re
from functools import cache
from typing import Any

from lit_moss.errors import UserError
from lit_moss.prepare.spoken_rules import Piece, Unit, is_letter, units, unknown_characters


@cache
def _normalizer() -> Any:
    try:
        from wetext import Normalizer
    except ImportError as error:
        raise UserError("spoken Chinese needs wetext: pip install 'lit-moss[prepare]'") from error
    return Normalizer(lang="zh", operator="tn")


def is_speakable(character: str) -> bool:
    """Letters, spaces and punctuation."""
    return (
        is_letter(character)
        or character.isspace()
        or character in ".,;:!?\"'()[]{}-…。，；：！？、《》〈〉「」『』【】（）“”‘’—·"
    )


def pieces(text: str) -> list[Piece]:
    """Pieces that cover the text with what is said for each."""
    found: list[Piece] = []
    place = 0
    for m in _normalizer().normalize_with_mapping(text).mappings:
        found += [Piece(i, i + 1, text[i], by_rule=False) for i in range(place, m.input_start)]
        found.append(Piece(m.input_start, m.input_end, m.output_text))
        place = m.input_end
    return found + [Piece(i, i + 1, text[i], by_rule=False) for i in range(place, len(text))]


_TOKEN = re.compile(r"[A-Za-z']+|\S")


def spoken_units(text: str) -> list[Unit]:
    """Written tokens with the words each is spoken as: characters, words in Latin letters."""
    tokens = [m.span() for m in _TOKEN.finditer(text)]
    return units(text, pieces(text), tokens, is_speakable, _TOKEN)


def unknown(text: str) -> str:
    """Characters that no rule can say, each once."""
    return unknown_characters(pieces(text), is_speakable)
