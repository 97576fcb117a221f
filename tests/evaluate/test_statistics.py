"""Paired tests, by hand."""

import math

import pytest

from lit_moss.evaluate.statistics import bootstrap_interval, mcnemar


def test_mcnemar_by_hand():
    # 8 items decided by one model alone, 1 of them by the other: 2 (C(8,0) + C(8,1)) / 2^8
    a, b = [1] * 7 + [0] + [1, 0, 0.5], [0] * 7 + [1] + [1, 0, 0.5]
    test = mcnemar(a, b)
    assert (test.only_a, test.only_b) == (7, 1)
    assert test.p == pytest.approx(18 / 256)
    assert mcnemar(b, a).p == test.p
    assert mcnemar([1, 0], [1, 0]).p == 1.0
    assert mcnemar([1, 0], [0, 1]).p == 1.0
    assert mcnemar([1] * 3000, [0] * 3000).p == 0.0  # 2^3000 exceeds any float


def test_bootstrap_interval_is_that_of_the_normal_for_many_items():
    differences = [1.0] * 400 + [0.0] * 600
    low, high = bootstrap_interval(differences)
    half = 1.96 * math.sqrt(0.4 * 0.6 / 1000)
    assert low == pytest.approx(0.4 - half, abs=0.003)
    assert high == pytest.approx(0.4 + half, abs=0.003)
    assert bootstrap_interval(differences) == (low, high)
    assert bootstrap_interval([2.0] * 9) == (2.0, 2.0)
    assert all(map(math.isnan, bootstrap_interval([])))
