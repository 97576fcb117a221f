"""Checks for answers that should not be spoken or learnt: loops, refusals, another language, no end."""

import re
from collections.abc import Sequence

from lit_moss.prepare.language import HAN

_HAN_CHARACTER = re.compile(f"[{HAN}]")
_UNIT = re.compile(f"[{HAN}]|[^\\W_{HAN}]+(?:['’][^\\W_{HAN}]+)*")
# A list number is matched first, so that its full stop does not end a sentence.
_SENTENCE_END = re.compile(
    r"^[ \t]*\d+[.)]|([.](?=\s|[\"”’)\]*_]|$)|[!?](?=\W|$)|[。！？…])[\"”’)\]」』*_]*", re.MULTILINE
)
_MODEL = r"(?:ai|artificial intelligence|(?:large )?language model)\b"
_NOT_ABLE = r"(?:can(?:no|')t|am not able|am unable|do not|don't)\b"
_MODEL_ZH, _NOT_ABLE_ZH = "(?:一个|一名|一款)?(?:人工智能|ai|大?语言模型)", "(?:无法|不能|没有办法|不便)"
_REFUSALS = re.compile(
    rf"\bas an? {_MODEL}"
    rf"|\bi(?:'m| am) (?:\w+ )?an? (?:\w+ ){{0,2}}{_MODEL}"
    rf"|\bi(?:'m| am) (?:sorry|afraid),? (?:but )?(?:that )?(?:i {_NOT_ABLE}|i'm|i am|as)\b"
    r"|\bi(?:'m| am) (?:unable|not able) to\b"
    r"|\bi (?:can(?:no|')t|won't|will not) (?:assist|help|provide|answer|fulfil|comply|do that|engage)\b"
    r"|\bi do(?:n't| not) have (?:access|the ability|personal|real-time)\b"
    rf"|作为{_MODEL_ZH}|我(?:只)?是{_MODEL_ZH}"
    rf"|(?:抱歉|对不起|很遗憾)[，,]?\s*(?:但)?(?:我)?{_NOT_ABLE_ZH}"
    r"|我(?:无法|不能)(?:提供|回答|协助|帮助|满足)"
)
_REFUSAL_REACH = 200  # characters: later, such words are usually part of a real answer


def units_of(text: str) -> list[str]:
    """Words in lower case; each Chinese character is a word."""
    return _UNIT.findall(text.lower())


def language_of(text: str) -> str:
    """`zh` if at least a third of the words are Chinese characters, otherwise `en`; "" without words."""
    units = units_of(text)
    if not units:
        return ""
    chinese = sum(1 for unit in units if _HAN_CHARACTER.match(unit))
    return "zh" if 3 * chinese >= len(units) else "en"


_ENOUGH_WORDS = 12
_COMMON_WORDS = (
    "the of and to is it you that was for are with as they be this have or had by but not what all were we "
    "when your can said there which their if will how about out many then them these would like has"
)
_COMMON = frozenset(_COMMON_WORDS.split())


def is_english(units: Sequence[str]) -> bool:
    """Whether words in Latin script look like English: every passage contains the most common words."""
    common = sum(unit in _COMMON for unit in units)
    return len(units) < _ENOUGH_WORDS or common >= 0.08 * len(units)


def repeated_share(units: Sequence[str], n: int) -> float:
    """Fraction of the words that belong to a repeated sequence of n words."""
    seen: set[tuple[str, ...]] = set()
    repeated = [False] * len(units)
    for start in range(len(units) - n + 1):
        gram = tuple(units[start : start + n])
        if gram in seen:
            repeated[start : start + n] = [True] * n
        seen.add(gram)
    return sum(repeated) / len(units) if units else 0.0


def is_refusal(text: str) -> bool:
    """Whether an answer begins with a refusal."""
    return bool(_REFUSALS.search(text[:_REFUSAL_REACH].lower().replace("’", "'")))


def finished_part(text: str) -> str:
    """The text up to the end of its last complete sentence; "" if there is none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if match[1]]
    return text[: ends[-1]] if ends else ""


def first_sentences(text: str, count: int) -> str:
    """The first `count` sentences of a text; "" if it has fewer complete sentences."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if match[1]]
    return text[: ends[count - 1]] if len(ends) >= count else ""
