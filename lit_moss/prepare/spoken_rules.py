"""Rewrites a text by rules, with a map from every written token to its spoken words.

A rule is a pattern and a function of its match. `scan` traverses the text once: at each position the first
rule that applies consumes its match; characters to which no rule applies are copied. `units` then divides the
text into tokens (words between spaces; single characters in scripts without spaces), merges tokens that one
rule consumed together (`May 6, 1990`), and assigns each its spoken words.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

Unit = tuple[str, list[str]]

PAUSES = ".,;:!?…。，；：！？、"
_OPENING = "\"'(“‘（《〈「『【["
_CLOSING = "\"')”’）》〉」』】]"
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff\ufe0e\ufe0f]")
_UNSPACED_PAUSE = re.compile(r"([.,;:!?…])(?=[^\W\d_])")
_PLAIN = str.maketrans(
    {
        "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "ʼ": "'", "`": "'", "´": "'",
        "[": "(", "]": ")", "{": "(", "}": ")", "—": ", ", "–": ", ", "‒": ", ", "―": ", ", "‑": "-",
        "‐": "-",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A rule for the spoken form of a pattern.

    Args:
        pattern: Pattern, matched at one position; may look behind it.
        say: Returns the spoken form of a match; None: the rule does not apply.
    """

    pattern: re.Pattern[str]
    say: Callable[[re.Match[str]], str | None]


@dataclass
class _Token:
    """A written token, `text[start:stop]`, with its spoken words."""

    start: int
    stop: int
    words: list[str] = field(default_factory=list)
    opening: str = ""  # a bracket or quotation mark that belongs to the next word


@dataclass(frozen=True)
class Piece:
    """Spoken form of `text[start:stop]`; `by_rule` is False if a character or word is copied unchanged."""

    start: int
    stop: int
    spoken: str
    by_rule: bool = True


def rule(pattern: str, say: Callable[[re.Match[str]], str | None] | str, flags: int = 0) -> Rule:
    """Creates a rule; a string is the spoken form itself."""
    if isinstance(say, str):
        words = say
        return Rule(re.compile(pattern, flags), lambda match: words)
    return Rule(re.compile(pattern, flags), say)


def scan(text: str, rules_at: Callable[[str], Sequence[Rule]], copied: re.Pattern[str]) -> Iterator[Piece]:
    """Yields pieces that cover the text.

    Args:
        text: Any text.
        rules_at: Returns the rules that may apply at a position that begins with a given character, in order.
        copied: Text copied as one piece if no rule applies, such as a word; otherwise one character is
            copied.
    """
    place = 0
    while place < len(text):
        for each in rules_at(text[place]):
            match = each.pattern.match(text, place)
            spoken = each.say(match) if match and match.end() > place else None
            if match and spoken is not None:
                yield Piece(place, match.end(), spoken)
                place = match.end()
                break
        else:
            match = copied.match(text, place)
            stop = match.end() if match else place + 1
            yield Piece(place, stop, text[place:stop], by_rule=False)
            place = stop


def unknown_characters(pieces: Iterable[Piece], is_speakable: Callable[[str], bool]) -> str:
    """Distinct characters of the spoken forms, in order, that are neither letters nor punctuation."""
    kept = (c for piece in pieces for c in _INVISIBLE.sub("", piece.spoken))
    return "".join(dict.fromkeys(c for c in kept if not is_speakable(c)))


def units(
    text: str,
    pieces: Iterable[Piece],
    tokens: Iterable[tuple[int, int]],
    is_speakable: Callable[[str], bool],
    spoken_words: re.Pattern[str],
) -> list[Unit]:
    """Written tokens with their spoken words.

    Args:
        text: The written text.
        pieces: Pieces, as returned by `scan`.
        tokens: Start and stop of each written token, in order; only spaces are in between.
        is_speakable: Whether a character is kept in the spoken form; others are dropped.
        spoken_words: Pattern of a spoken word with its punctuation.

    Returns:
        Pairs; the written tokens, joined, are the text. A token without spoken words, such as a dash, is
        merged with the token before it, or with the next one at the start.
    """
    pieces = [p for p in pieces if p.stop > p.start]
    joined = list(_joined_tokens(tokens, pieces))
    found: list[_Token] = []
    waiting = iter(pieces)
    piece = next(waiting, None)
    for start, stop in joined:
        spoken = ""
        while piece is not None and piece.start < stop:
            spoken += piece.spoken
            piece = next(waiting, None)
        _add(found, _Token(start, stop), _clean(spoken, is_speakable), spoken_words)
    return [(" ".join(text[t.start : t.stop].split()), t.words) for t in found]


def _joined_tokens(tokens: Iterable[tuple[int, int]], pieces: list[Piece]) -> Iterator[tuple[int, int]]:
    """Tokens, of which those that share a piece are merged."""
    ends = iter(p for p in pieces if p.by_rule)
    piece = next(ends, None)
    open_token: tuple[int, int] | None = None
    for start, stop in tokens:
        open_token = (open_token[0], stop) if open_token else (start, stop)
        while piece is not None and piece.stop <= stop:
            piece = next(ends, None)
        if piece is None or piece.start >= stop:
            yield open_token
            open_token = None
    if open_token:
        yield open_token


def _clean(spoken: str, is_speakable: Callable[[str], bool]) -> str:
    spoken = _INVISIBLE.sub("", spoken)
    spoken = "".join(c if is_speakable(c) else " " for c in spoken).translate(_PLAIN)
    return _UNSPACED_PAUSE.sub(r"\1 ", re.sub(r"\.{2,}", "…", spoken))


def _add(tokens: list[_Token], token: _Token, spoken: str, words: re.Pattern[str]) -> None:
    """Appends a token; separate punctuation is added to the word before or after it."""
    before = tokens[-1].opening if tokens else ""
    if tokens:
        tokens[-1].opening = ""
    for word in words.findall(spoken):
        word = "," if word in ("-", "--") else word
        if any(map(is_letter, word)):
            token.words.append(before + word)
            before = ""
        elif word[0] in PAUSES or (word[0] in _CLOSING and (token.words or tokens)):
            last = token.words or (tokens[-1].words if tokens else [])
            if last and last[-1][-1] not in PAUSES:
                last[-1] += word
            elif word[0] in _OPENING:
                before = word
        elif word[0] in _OPENING:
            before = word
    token.opening = before
    if tokens and not (token.words and tokens[-1].words):
        tokens[-1].opening = before
        tokens[-1].stop = token.stop
        tokens[-1].words += token.words
    else:
        tokens.append(token)


def is_letter(character: str) -> bool:
    """Whether it is a letter of any script, or the Chinese zero."""
    return character == "〇" or unicodedata.category(character)[0] == "L"
