"""95 % intervals of means and of pooled rates; those of shares are `evaluation.wilson`."""

import math
from collections.abc import Sequence

import numpy as np


def half_width(values: Sequence[float]) -> float | None:
    """1.96 standard errors of a mean; None below two values."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return 1.96 * math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)


def pooled_interval(
    errors: Sequence[int], words: Sequence[int], draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Interval of all errors over all words, by a bootstrap over utterances.

    Args:
        errors: Errors of each utterance.
        words: Words of each.
        draws: Samples of as many utterances, with replacement.
        seed: Of the samples.
    """
    chosen = np.random.default_rng(seed).integers(0, len(errors), (draws, len(errors)))
    totals = np.maximum(1, np.asarray(words)[chosen].sum(axis=1))
    low, high = np.percentile(np.asarray(errors)[chosen].sum(axis=1) / totals, [2.5, 97.5])
    return float(low), float(high)
