"""95 % intervals of means and of pooled rates; for fractions see `evaluation.wilson`."""

import math
from collections.abc import Sequence

import numpy as np


def half_width(values: Sequence[float]) -> float | None:
    """1.96 standard errors of the mean; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return 1.96 * math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)


def pooled_interval(
    errors: Sequence[int], words: Sequence[int], draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Interval of total errors divided by total words, by bootstrap over utterances.

    Args:
        errors: Number of errors of each utterance.
        words: Number of words of each utterance.
        draws: Number of bootstrap samples.
        seed: Seed of the samples.
    """
    chosen = np.random.default_rng(seed).integers(0, len(errors), (draws, len(errors)))
    totals = np.maximum(1, np.asarray(words)[chosen].sum(axis=1))
    low, high = np.percentile(np.asarray(errors)[chosen].sum(axis=1) / totals, [2.5, 97.5])
    return float(low), float(high)
