"""Alternates text and speech within an utterance, a few words at a time.

    words     the   cat   sat   on   a   warm   mat
    spans     text──────  speech───────  text   speech        1 to 3 words each

Otherwise documents alternate between chunks of 3 to 6 s (`interleave.chunk_words`). Short spans show the
model more often which codes belong to which words (after Spirit-LM, arXiv:2402.05755).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from lit_moss.data.interleave import Span, Word, word_boundaries
from lit_moss.errors import UserError


@dataclass(frozen=True)
class WordSpans:
    """Options for alternating text and speech within an utterance, at word boundaries.

    Args:
        min_words: Minimum number of words of a span.
        max_words: Maximum number of words of a span.
    """

    min_words: int = 1
    max_words: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise UserError(
                f"spans has min_words {self.min_words} and max_words {self.max_words}: expected 1 or more, "
                "the first one not above the second"
            )

    def record(self) -> dict[str, int]:
        """The options as plain values."""
        return asdict(self)


def spans_by_turns(
    words: Sequence[Word], codes: int, rng: np.random.Generator, spans: WordSpans
) -> list[tuple[Span, str]]:
    """Spans of a random number of words, alternating between text and speech; the first modality is random.

    A span whose words lie within one code (80 ms) is extended until it has a code of its own, so that no word
    is lost as speech; trailing words without a code are merged into the previous span.

    Raises:
        ValueError: if the word times are not in order.
    """
    boundary = word_boundaries(words, codes)
    cuts = [0]
    while cuts[-1] < len(words):
        stop = min(len(words), cuts[-1] + int(rng.integers(spans.min_words, spans.max_words + 1)))
        while stop < len(words) and boundary[stop] == boundary[cuts[-1]]:
            stop += 1
        if boundary[stop] == boundary[cuts[-1]] and len(cuts) > 1:
            cuts.pop()
        cuts.append(stop)
    first = int(rng.integers(2))
    return [
        (Span(start, stop, boundary[start], boundary[stop]), ("text", "speech")[(first + i) % 2])
        for i, (start, stop) in enumerate(pairwise(cuts))
    ]
