"""CTC forced alignment of one utterance: word times from the scores of an acoustic model and a text.

It uses `torchaudio.functional.forced_align` safely: that function reads uninitialised memory if a score is
not finite, raises an error if the text is longer than the audio, and finds a path for any text. Therefore the
result also states how well the path fits.

Shapes: T frames, V vocabulary including blank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torchaudio import functional as F
from torchaudio.functional import TokenSpan

# A letter that is not in the vocabulary: it gets the best score of all symbols except blank in each frame.
WILDCARD = -1
# Log-probability cost of a wildcard per frame. Without it, its score would equal that of an adjacent letter
# where that is the best symbol, and with ties `forced_align` may miss the best path.
_WILDCARD_COST = 0.01


class CannotAlign(Exception):  # noqa: N818
    """An utterance that cannot be aligned.

    Args:
        reason: Name of the rule.
        value: Measured value.
        threshold: Expected value.
    """

    def __init__(
        self, reason: str, value: float | str | None = None, threshold: float | str | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.value, self.threshold = reason, value, threshold


@dataclass(frozen=True)
class TimedWord:
    """Time of a spoken word.

    Args:
        start_sec: Start of its first letter in seconds, from the start of the utterance.
        end_sec: End of its last letter in seconds.
        score: Mean probability of its letters, weighted by their length; None if none of its letters is in
            the vocabulary.
        weight: Number of frames (or letters) in the mean.
    """

    start_sec: float
    end_sec: float
    score: float | None
    weight: float = 1.0


def align_words(
    log_probs_TV: Tensor,
    words: Sequence[Sequence[int]],
    seconds_per_frame: float,
    blank: int = 0,
    separator: int | None = None,
) -> list[TimedWord | None]:
    """Times of words; None for a word without letters.

    Args:
        log_probs_TV: Log-probabilities, float32 (T, V).
        words: Ids of each word's letters; `WILDCARD` for letters that are not in the vocabulary.
        seconds_per_frame: Length of the audio in seconds divided by T.
        blank: Id of the blank.
        separator: Id of the word separator, if the vocabulary has one; it belongs to no word.

    Raises:
        CannotAlign: if there are no letters, the text is too long for T frames, or scores are not finite.
    """
    frames, vocabulary_size = log_probs_TV.shape
    ids, owners = _targets(words, vocabulary_size, separator)
    if not any(owner is not None for owner in owners):
        raise CannotAlign("no letters to align")
    needed = len(ids) + sum(a == b for a, b in pairwise(ids))
    if frames < needed:
        raise CannotAlign("text too long for its audio", needed, frames)
    if not bool(torch.isfinite(log_probs_TV).all()):
        raise CannotAlign("scores are not finite")
    scores_TV = _with_wildcard(log_probs_TV.float(), blank)
    targets = torch.tensor([ids], dtype=torch.int32, device=scores_TV.device)
    path_1T, path_scores_1T = F.forced_align(scores_TV[None], targets, blank=blank)
    # One span per target, in order; `end` is exclusive.
    spans = F.merge_tokens(path_1T[0], path_scores_1T[0].exp(), blank=blank)
    spans_of: list[list[TokenSpan]] = [[] for _ in words]
    for span, owner in zip(spans, owners, strict=True):
        if owner is not None:
            spans_of[owner].append(span)
    return [_timed(own, vocabulary_size, seconds_per_frame) if own else None for own in spans_of]


def _targets(
    words: Sequence[Sequence[int]], wildcard: int, separator: int | None
) -> tuple[list[int], list[int | None]]:
    """Ids of the whole text, and the word that each belongs to; None for a separator."""
    ids: list[int] = []
    owners: list[int | None] = []
    for number, word in enumerate(words):
        if word and ids and separator is not None:
            ids.append(separator)
            owners.append(None)
        ids += [wildcard if i == WILDCARD else i for i in word]
        owners += [number] * len(word)
    return ids, owners


def _with_wildcard(log_probs_TV: Tensor, blank: int) -> Tensor:
    """Adds a column with the best score of each frame except blank."""
    others_TV = torch.cat([log_probs_TV[:, :blank], log_probs_TV[:, blank + 1 :]], dim=1)
    best_T1 = others_TV.max(dim=1, keepdim=True).values - _WILDCARD_COST
    return torch.cat([log_probs_TV, best_T1], dim=1).contiguous()


def _timed(spans: list[TokenSpan], wildcard: int, seconds_per_frame: float) -> TimedWord:
    letters = [span for span in spans if span.token != wildcard]
    weight = sum(span.end - span.start for span in letters)
    total = sum(span.score * (span.end - span.start) for span in letters)
    return TimedWord(
        spans[0].start * seconds_per_frame,
        spans[-1].end * seconds_per_frame,
        total / weight if weight else None,
        weight,
    )


def interpolate(
    times: Sequence[tuple[float, float] | None], lengths: Sequence[int], duration_sec: float
) -> list[tuple[float, float]]:
    """Times of all words: words without times share the gap between their neighbours.

    Args:
        times: Start and end of each word in seconds, in order; None if unknown.
        lengths: Number of letters of each word; gaps are divided in proportion to them.
        duration_sec: Length of the utterance in seconds.
    """
    filled: list[tuple[float, float]] = []
    place = 0
    while place < len(times):
        known = times[place]
        if known is not None:
            filled.append(known)
            place += 1
            continue
        stop = place
        while stop < len(times) and times[stop] is None:
            stop += 1
        after = times[stop] if stop < len(times) else None
        start = filled[-1][1] if filled else 0.0
        end = max(start, after[0] if after else duration_sec)
        until = list(accumulate((max(1, n) for n in lengths[place:stop]), initial=0))
        borders = [start + (end - start) * n / until[-1] for n in until]
        filled += pairwise(borders)
        place = stop
    return filled
