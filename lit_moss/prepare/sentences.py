"""Divides long text into pieces for a voice."""

import re
from collections.abc import Callable

from lit_moss.errors import UserError
from lit_moss.prepare.english_tables import ABBREVIATIONS, AFTER_NAMES, BEFORE_NUMBERS, TITLES
from lit_moss.prepare.language import is_han

_CLOSERS = "\"'”’)\\]』」》】）"
_END = re.compile(rf"(?:[.!?…]+[{_CLOSERS}]*(?=\s|$)|[。！？；…]+[{_CLOSERS}]*|\n+)\s*")
_PAUSE = re.compile(rf"(?:[,;:—–][{_CLOSERS}]*\s+|\s[-—–]+\s+|—|[，、：][{_CLOSERS}]*\s*)")
_SPACE = re.compile(r"\s+")
_LAST_WORD = re.compile(r"\S+$")
# Full stops that may end a sentence; the next word decides.
_MAY_END = {
    "etc.",
    "al.",
    "Jr.",
    "Sr.",
    "Co.",
    "Inc.",
    "Ltd.",
    "Corp.",
    "St.",
    "Ave.",
    "Rd.",
    "Blvd.",
    "Dr.",
    "a.m.",
    "p.m.",
}
_NEVER_END = {
    *(f"{t}." for t in TITLES), *(a for a in ABBREVIATIONS if a.endswith(".")),
    *(f"{b}." for b in BEFORE_NUMBERS if b != "no"), *(f"{a}." for a in AFTER_NAMES),
} - _MAY_END  # fmt: skip
_DOTTED = re.compile(r"(?:[A-Za-z]\.){1,}$")


def split_text(text: str, lang: str, max_chars: int = 350, min_words: int = 5) -> list[str]:
    """Pieces of a text, each for one call of a voice.

    The text is cut at the ends of sentences (. ! ? … 。！？； and line ends; not within abbreviations,
    numbers and initials). A sentence longer than `max_chars` is cut at commas, colons and dashes, then at
    spaces, then anywhere. Pieces with fewer than `min_words` are merged with an adjacent piece, the shorter
    one first, if both together are within `max_chars`.

    Args:
        text: Any text.
        lang: en or zh; in Chinese, characters are counted as words.
        max_chars: Maximum number of characters of a piece.
        min_words: Minimum number of words of a piece, if adjacent pieces have room.

    Returns:
        Non-empty pieces without surrounding spaces; every other character of the text is in exactly one
        piece.
    """
    if max_chars < 1 or min_words < 0:
        raise UserError(f"got max_chars {max_chars}, min_words {min_words}: expected at least 1 and 0")
    pieces: list[str] = []
    for sentence in _cut(text, _END, _ends_sentence):
        pieces += _fit(sentence, max_chars, [_PAUSE, _SPACE])
    return [p.strip() for p in _join_short(pieces, max_chars, min_words, lang)]


def _cut(
    text: str, at: re.Pattern[str], accept: Callable[[str, re.Match[str]], bool] | None = None
) -> list[str]:
    """Cuts the text after each match, without losing anything. Pieces of spaces only are left out."""
    pieces, start = [], 0
    for match in at.finditer(text):
        if accept is None or accept(text, match):
            pieces.append(text[start : match.end()])
            start = match.end()
    return [p for p in [*pieces, text[start:]] if p.strip()]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    """Whether a mark ends a sentence: not the full stop of an abbreviation, an initial or a list number."""
    mark = match[0].strip()
    following = text[match.end() : match.end() + 1]
    if not mark or mark[0] in "。！？；" or "\n" in match[0] or not following:
        return True
    if following.islower():  # "Go!" he said.
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    word = _LAST_WORD.search(text, 0, match.start() + 1)
    last = word[0].lstrip("\"'“‘([{") if word else ""
    if last in _NEVER_END:
        return False
    if last in _MAY_END or (_DOTTED.match(last) and len(last) > 2):
        return following.isupper() and last not in ("St.", "Dr.")
    if re.fullmatch(r"[A-Z]\.", last):  # an initial, but "I." ends a sentence
        return last == "I."
    if re.fullmatch(r"\d{1,2}\.", last):  # 1. First item
        before = text[: match.start() + 1 - len(last)]
        return bool(before.strip()) and before.rstrip(" ")[-1] not in ".!?:;\n"
    return True


def _fit(piece: str, max_chars: int, marks: list[re.Pattern[str]]) -> list[str]:
    """Cuts a piece to at most `max_chars` at the first sufficient kind of mark, into few parts."""
    if len(piece.strip()) <= max_chars:
        return [piece]
    if not marks:
        return [piece[i : i + max_chars] for i in range(0, len(piece), max_chars)]
    parts = [p for part in _cut(piece, marks[0]) for p in _fit(part, max_chars, marks[1:])]
    joined = parts[:1]
    for part in parts[1:]:
        if len((joined[-1] + part).strip()) <= max_chars:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _join_short(pieces: list[str], max_chars: int, min_words: int, lang: str) -> list[str]:
    pieces = list(pieces)
    place = 0
    while place < len(pieces):
        if _words(pieces[place], lang) >= min_words:
            place += 1
            continue
        neighbours = [i for i in (place - 1, place) if 0 <= i < len(pieces) - 1]
        neighbours = [i for i in neighbours if len((pieces[i] + pieces[i + 1]).strip()) <= max_chars]
        if not neighbours:
            place += 1
            continue
        first = min(neighbours, key=lambda i: len(pieces[i] + pieces[i + 1]))
        pieces[first : first + 2] = [pieces[first] + pieces[first + 1]]
        place = first
    return pieces


def _words(text: str, lang: str) -> int:
    """Number of words; in Chinese, of characters and words in Latin letters."""
    if lang != "zh":
        return len(text.split())
    spaced = "".join(f" {c} " if is_han(c) else c for c in text)
    return sum(any(map(str.isalnum, word)) for word in spaced.split())
