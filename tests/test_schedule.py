"""Learning-rate factors, step by step as fractions."""

from math import sqrt

import pytest

from lit_moss.schedule import warmup_cosine


@pytest.mark.parametrize(("step", "factor"), [(0, 1 / 4), (1, 2 / 4), (2, 3 / 4), (3, 4 / 4)])
def test_the_rise_is_linear_and_never_zero(step, factor):
    assert warmup_cosine(step, warmup_steps=4, total_steps=12) == factor


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (4, 1),
        (6, (1 + sqrt(1 / 2)) / 2),
        (8, 1 / 2),
        (10, (1 - sqrt(1 / 2)) / 2),
        (12, 0),
        (13, 0),
        (1000, 0),
    ],
)
def test_the_fall_is_half_a_cosine_from_warmup_to_total_and_stays(step, factor):
    assert warmup_cosine(step, warmup_steps=4, total_steps=12) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(("step", "factor"), [(1, 2 / 2), (2, 1), (4, 11 / 20), (6, 1 / 10), (7, 1 / 10)])
def test_the_floor_is_a_share_of_the_base_rate(step, factor):
    assert warmup_cosine(step, warmup_steps=2, total_steps=6, floor=0.1) == pytest.approx(factor, abs=1e-15)


def test_no_warmup_starts_at_the_full_rate():
    assert warmup_cosine(0, warmup_steps=0, total_steps=10) == 1


@pytest.mark.parametrize(("step", "factor"), [(3, 4 / 5), (4, 1), (5, 1), (6, 0)])
def test_a_run_shorter_than_its_warmup_still_rises(step, factor):
    assert warmup_cosine(step, warmup_steps=5, total_steps=3) == pytest.approx(factor, abs=1e-15)
