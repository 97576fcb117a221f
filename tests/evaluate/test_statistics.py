"""Paired tests, by hand."""

import pytest

from lit_moss.evaluate.statistics import mcnemar, paired_bootstrap


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


def test_the_bootstrap_interval_is_that_of_the_difference():
    a, b = [1] * 60 + [0] * 40, [1] * 50 + [0] * 50
    mean, low, high = paired_bootstrap(a, b)
    assert mean == pytest.approx(0.1)
    # of 100 differences 10 are 1: +- 1.96 sqrt(.1 * .9 / 100) = .059; unpaired it would be .137
    assert low == pytest.approx(0.1 - 0.059, abs=0.015)
    assert high == pytest.approx(0.1 + 0.059, abs=0.015)
    assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="no items"):
        paired_bootstrap([], [])
