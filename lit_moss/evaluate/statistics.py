"""Statistical tests for two models that answered the same items.

The difference of two scores on the same items has a smaller error than two separate intervals suggest,
because most items are right, or wrong, with both models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test.

    Args:
        only_a: Number of items on which the first model is better.
        only_b: Number of items on which the second model is better.
        p: Two-sided probability of a split at least as uneven as this one if both models are equally good.
    """

    only_a: int
    only_b: int
    p: float


def mcnemar(a: Sequence[float], b: Sequence[float]) -> McNemar:
    """Exact two-sided test of whether two models differ, from their scores on the same items.

        p = min(1, 2 Σ_{k <= min(only_a, only_b)} C(n, k) / 2^n)      n = only_a + only_b

    Args:
        a: Score of each item: 1 right, 0 wrong, .5 for a tie. Items with equal scores are ignored.
        b: Scores of the other model, in the same order.

    Raises:
        ValueError: if the lengths differ.
    """
    pairs = list(zip(a, b, strict=True))
    only_a, only_b = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))  # integers, because 2**n may exceed any float


def bootstrap_interval(
    differences: Sequence[float], draws: int = 10_000, seed: int = 1, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences, by drawing items with replacement.

    Args:
        differences: Difference of each item, such as right in A minus right in B.
        draws: Number of bootstrap samples.
        seed: Seed of the samples.
        level: Fraction of the samples within the interval.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        return math.nan, math.nan
    # Differences of right and wrong have few values: drawing counts of each avoids n x draws values.
    kinds, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(values), counts / len(values), size=draws)
    means = drawn @ kinds / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
