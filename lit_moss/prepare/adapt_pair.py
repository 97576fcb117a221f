"""A question and its answer after adaptation by any adapter, and the requirements on every adapted text."""

import re
from dataclasses import dataclass
from typing import Literal

from lit_moss.prepare.language import HAN, text_language

State = Literal["PASSTHROUGH", "ADAPT"]
WORDS, WORDS_OF_DETAIL = 200, 400  # appendix A: approximately; the second if detail is asked for
_TOLERANCE = 1.25  # factor by which a model may exceed the approximate number
_HAN_PER_WORD = 1.5  # 200 English words and 300 Chinese characters both take about 80 s to say

HAN_CHARACTER = re.compile(f"[{HAN}]")
_DETAIL = re.compile(
    r"\b(in (great |full |more )?detail|detailed|thorough(ly)?|in depth|in-depth|essay|comprehensive(ly)?"
    r"|elaborate|step[- ]by[- ]step)\b|详细|详尽|具体(说明|介绍|讲)|深入|一步一步|逐步",
    re.IGNORECASE,
)
_LEFTOVERS = (
    ("brackets", re.compile(r"[()\[\]{}<>（）【】［］｛｝〔〕]")),
    (
        "Markdown",  # except `1945. The war ended.`, a text that begins with a number
        re.compile(r"\*\*|__|`|^\s*(#{1,6}|[-*+•])\s|\n\s*\d+[.)]\s|\A\s*(\d+\)|1\.)\s|\|", re.MULTILINE),
    ),
    ("LaTeX", re.compile(r"\\[A-Za-z(\[]|\$[^$\d]+\$|[\^\\]")),
    ("an address", re.compile(r"https?://|www\.", re.IGNORECASE)),
    ("an emoji", re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f]")),
)


class PairRejected(Exception):  # noqa: N818
    """A pair that cannot be adapted for speech.

    Args:
        reason: Name of the rule.
        value: What was found.
        threshold: What was expected.
    """

    def __init__(
        self, reason: str, value: str | float | None = None, threshold: str | float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.value, self.threshold = reason, value, threshold


@dataclass(frozen=True)
class Side:
    """A question or an answer.

    Args:
        state: Whether it was changed.
        text: Text to be spoken.
        style: Speaking style.
        simplified: Whether something was left out.
        corrected: Whether something wrong or unsafe was rewritten.
    """

    state: State
    text: str
    style: str = "neutral"
    simplified: bool = False
    corrected: bool = False


@dataclass(frozen=True)
class Pair:
    """A question, its answer, and the quality of the pair, from 1 to 5."""

    question: Side
    answer: Side
    quality: int


def is_chinese(text: str) -> bool:
    """Whether words added to a text should be Chinese."""
    return text_language(text) == "zh"


def length_in_words(text: str) -> float:
    """Length in words; 1.5 Chinese characters count as one word, as they take equally long to say."""
    han = len(HAN_CHARACTER.findall(text))
    return len(re.findall(r"[^\W_]+(?:['’.,-][^\W_]+)*", HAN_CHARACTER.sub(" ", text))) + han / _HAN_PER_WORD


def word_limit(question: str) -> int:
    """Maximum number of words of the answer to a question."""
    return WORDS_OF_DETAIL if _DETAIL.search(question) else WORDS


def problem_of(text: str, limit: int) -> str | None:
    """What in an adapted text a voice could not say; None if there is nothing."""
    if not re.search(r"\w", text):
        return "it has no words"
    for name, pattern in _LEFTOVERS:
        match = pattern.search(text)
        if match:
            return f"it still has {name}: {match.group().strip()!r}"
    words = length_in_words(text)
    if words > limit * _TOLERANCE:
        return f"it has {words:.0f} words, at most about {limit} are allowed"
    return None
