"""Intervals: closed forms."""

import pytest

from lit_moss.evaluate.intervals import half_width, pooled_interval


def test_half_width_of_a_mean():
    assert half_width([1.0, 3.0]) == pytest.approx(1.96)  # standard deviation sqrt(2), over sqrt(2)
    assert half_width([2.0] * 7) == 0
    assert half_width([2.0]) is None


def test_pooled_interval():
    assert pooled_interval([1] * 5, [4] * 5) == (0.25, 0.25)
    assert pooled_interval([3], [0]) == (3, 3)
    # 100 utterances of one word, half of them wrong: the binomial's 0.5 ± 1.96 * 0.05
    low, high = pooled_interval([0, 1] * 50, [1] * 100)
    assert low == pytest.approx(0.402, abs=0.03)
    assert high == pytest.approx(0.598, abs=0.03)
