"""Comparisons of two systems on the same items."""

import math
from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    differences: Sequence[float], draws: int = 10_000, seed: int = 1, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences: items are drawn with replacement.

    Args:
        differences: One of each item, such as right in A minus right in B.
        draws: Samples of the items.
        seed: Of the draws.
        level: Share of the draws inside.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        return math.nan, math.nan
    # Differences of right and wrong have few values: counts of each are drawn, which costs no n x draws.
    kinds, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(values), counts / len(values), size=draws)
    means = drawn @ kinds / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided exact p value of McNemar's test: whether items that only one has right are as many each way.

    With b and c such items, p = min(1, 2 P(X <= min(b, c))) for X of Binomial(b + c, 1/2).

    Args:
        first: Whether each item is right in the first system.
        second: The same items in the second.
    """
    pairs = list(zip(first, second, strict=True))
    b, c = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    n, least = b + c, min(b, c)
    # Logarithms: 2^n leaves the range of floats at n = 1024.
    tail = sum(
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        for k in range(least + 1)
    )
    return min(1.0, 2 * tail)
