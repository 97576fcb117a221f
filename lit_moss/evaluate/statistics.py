"""Tests for two models that answered the same items.

The difference of two scores on the same items has a smaller error than two separate intervals say: most items
are right, or wrong, with both models.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test.

    Args:
        only_a: Items on which the first model is better.
        only_b: Items on which the second one is.
        p: Two-sided probability of a split as uneven as this one, or more so, where both are equally good.
    """

    only_a: int
    only_b: int
    p: float


def mcnemar(a: Sequence[float], b: Sequence[float]) -> McNemar:
    """Exact two-sided test whether two models differ, from their scores on the same items.

        p = min(1, 2 Σ_{k <= min(only_a, only_b)} C(n, k) / 2^n)      n = only_a + only_b

    Args:
        a: Score of each item: 1 right, 0 wrong; .5 for a tie. Items with equal scores do not count.
        b: The other model's, in the same order.

    Raises:
        ValueError: if the lengths differ.
    """
    pairs = list(zip(a, b, strict=True))
    only_a, only_b = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))  # whole numbers: 2**n may exceed any float


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b, and the 95 % percentile interval of that mean over resampled items.

    Args:
        a: Score of each item, of any kind.
        b: The other model's, in the same order.
        samples: Number of resamples.
        seed: Seed of what is drawn.

    Raises:
        ValueError: if the lengths differ, or there are no items.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    if not differences:
        raise ValueError("no items to compare")
    n, rng = len(differences), random.Random(seed)
    means = sorted(sum(rng.choices(differences, k=n)) / n for _ in range(samples))
    low, high = means[int(0.025 * samples)], means[min(samples - 1, int(0.975 * samples))]
    return sum(differences) / n, low, high
