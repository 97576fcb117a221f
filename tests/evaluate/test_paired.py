"""Paired comparisons: closed forms."""

import math

import pytest

from lit_moss.evaluate.paired import bootstrap_interval, mcnemar


def test_mcnemar_is_the_two_sided_binomial_test():
    # 1 against 5: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64
    first = [True] * 5 + [False] + [True] * 10
    second = [False] * 5 + [True] + [True] * 10
    assert mcnemar(first, second) == pytest.approx(14 / 64)
    assert mcnemar(second, first) == pytest.approx(14 / 64)
    assert mcnemar(first, first) == 1.0
    assert mcnemar([], []) == 1.0
    assert mcnemar([True, False], [False, True]) == 1.0
    assert 0 < mcnemar([True] * 1500, [False] * 1500) < 1e-300 or mcnemar([True] * 1500, [False] * 1500) == 0


def test_bootstrap_interval_is_that_of_the_normal_for_many_items():
    differences = [1.0] * 400 + [0.0] * 600
    low, high = bootstrap_interval(differences)
    half = 1.96 * math.sqrt(0.4 * 0.6 / 1000)
    assert low == pytest.approx(0.4 - half, abs=0.003)
    assert high == pytest.approx(0.4 + half, abs=0.003)
    assert bootstrap_interval(differences) == (low, high)
    assert bootstrap_interval([2.0] * 9) == (2.0, 2.0)
    assert all(map(math.isnan, bootstrap_interval([])))
