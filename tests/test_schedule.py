"""Learning-rate factors, step by step as fractions."""

import random
from math import cos, pi, sqrt

import pytest

from lit_moss.errors import UserError
from lit_moss.schedule import layerwise_lr, rate_factor, warmup_cosine


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


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("linear", [1 / 2, 1, 1, 31 / 40, 22 / 40, 13 / 40, 1 / 10, 1 / 10]),
        ("constant", [1 / 2, 1, 1, 1, 1, 1, 1, 1]),
        (
            "cosine",
            [1 / 2, 1, 1, (11 + 9 * sqrt(1 / 2)) / 20, 11 / 20, (11 - 9 * sqrt(1 / 2)) / 20, 1 / 10, 1 / 10],
        ),
    ],
)
def test_courses_step_by_step(kind, factors):
    assert [rate_factor(kind, step, 2, 6, 0.1) for step in range(8)] == pytest.approx(factors, abs=1e-15)


# Appendix D of arXiv:2510.00499 with the paper's N, k, w and r, and stage 2's peak.
N, K, W, T, PEAK = 32, 5000, 2000, 200_000, 6e-5


def appendix_d(s, i):
    """The four lines of the equation; the cosine by its half angle: (1 + cos x) / 2 = cos(x / 2) ** 2."""
    begin = 5000 * (31 - i)
    if s < begin:
        return 0.0
    if s < begin + 2000:
        return 6e-5 * ((s - begin) / 2000)
    if s > 200_000:
        return 6e-6
    return 6e-6 + 5.4e-5 * cos(pi / 2 * (s - begin - 2000) / (198_000 - begin)) ** 2


def test_appendix_d_at_200_random_layers_and_steps():
    draw = random.Random(16)
    for _ in range(200):
        layer, step = draw.randrange(N), draw.randrange(T + 5000)
        assert abs(layerwise_lr(step, layer, N, K, W, T, PEAK) - appendix_d(step, layer)) < 1e-12
        # The same relative to the peak: 1e-12 is little beside a rate of 6e-5 already.
        assert abs(layerwise_lr(step, layer, N, K, W, T, 1.0) - appendix_d(step, layer) / PEAK) < 1e-12


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0), (7, 0), (8, 0), (9, 1 / 2), (10, 1), (15, 11 / 20), (20, 1 / 10), (21, 1 / 10), (1000, 1 / 10)],
)
def test_appendix_d_layer_0_of_3_step_by_step(step, rate):
    # k = 4: it begins at step 8; w = 2: its peak is at 10; T = 20: its cosine takes 10 steps.
    assert layerwise_lr(step, 0, 3, 4, 2, 20, 1.0) == pytest.approx(rate, abs=1e-15)


def test_appendix_d_the_last_layer_begins_at_once_and_all_end_together():
    assert layerwise_lr(1, 2, 3, 4, 2, 20, 1.0) == 1 / 2
    assert [layerwise_lr(20, i, 3, 4, 2, 20, 1.0) for i in range(3)] == pytest.approx([0.1] * 3, abs=1e-15)


@pytest.mark.parametrize("total", [10, 9, 0, -1])
def test_appendix_d_refuses_a_run_in_which_layer_0_could_not_decay(total):
    with pytest.raises(UserError, match="needs more than 10 steps"):
        layerwise_lr(0, 0, 3, 4, 2, total, 1.0)
    layerwise_lr(0, 0, 3, 4, 2, 11, 1.0)


def test_appendix_d_at_the_papers_size_needs_more_than_157000_steps():
    with pytest.raises(UserError, match="needs more than 157000 steps"):
        layerwise_lr(0, 0, N, K, W, 157_000, PEAK)
