"""Augmentation: masks inside their bounds, speed with its pitch, padding to whole codes."""

import numpy as np
import pytest
import torch

from lit_moss.audio import rates
from lit_moss.data.augment import apply_spec_masks, change_speed, spec_masks


@pytest.mark.parametrize("seed", range(20))
def test_spec_masks_have_their_number_width_and_place(seed):
    frames, bins = 100 + 37 * seed, 80
    freq, time = spec_masks(np.random.default_rng(seed), frames, bins, 2, 15, 3, 0.05)
    assert (len(freq), len(time)) == (2, 3)
    for start, end in freq:
        assert 0 <= start <= end <= bins
        assert end - start <= 15
    for start, end in time:
        assert 0 <= start <= end <= frames
        assert end - start <= 0.05 * frames


def test_spec_masks_reach_every_width_and_both_edges():
    rng = np.random.default_rng(0)
    drawn = [spec_masks(rng, 100, 10, 1, 4, 1, 0.1) for _ in range(2000)]
    assert {end - start for ((start, end),), _ in drawn} == {0, 1, 2, 3, 4}
    assert {end - start for _, ((start, end),) in drawn} == set(range(11))
    assert min(start for ((start, _),), _ in drawn) == 0
    assert max(end for ((_, end),), _ in drawn) == 10
    assert max(end for _, ((_, end),) in drawn) == 100


def test_spec_masks_are_the_same_from_the_same_generator_state():
    a, b = (spec_masks(np.random.default_rng([1, 2, 3]), 500, 80, 2, 15, 2, 0.1) for _ in range(2))
    assert a == b
    assert a != spec_masks(np.random.default_rng([1, 2, 4]), 500, 80, 2, 15, 2, 0.1)


@pytest.mark.parametrize(("frames", "bins", "widest"), [(0, 80, 15), (3, 4, 100), (1, 1, 1)])
def test_spec_masks_of_tiny_items_stay_inside(frames, bins, widest):
    for seed in range(20):
        freq, time = spec_masks(np.random.default_rng(seed), frames, bins, 2, widest, 2, 1.0)
        assert all(0 <= start <= end <= bins for start, end in freq)
        assert all(0 <= start <= end <= frames for start, end in time)


def test_no_masks_are_no_masks():
    assert spec_masks(np.random.default_rng(0), 100, 80, 0, 15, 0, 0.05) == ([], [])


def test_apply_spec_masks_masks_the_spans_of_each_item_in_a_copy():
    mel_BMF = torch.rand(2, 8, 20) + 1.0
    before = mel_BMF.clone()
    masked = apply_spec_masks(mel_BMF, [[(1, 3)], []], [[(5, 5)], [(0, 4), (18, 20)]])
    expected = before.clone()
    expected[0, 1:3] = 0.0
    expected[1, :, :4] = 0.0
    expected[1, :, 18:] = 0.0
    assert torch.equal(masked, expected)
    assert torch.equal(mel_BMF, before)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_change_speed_changes_length_and_pitch_together(factor):
    t = torch.arange(rates.TOKENIZER_RATE_HZ * 2) / rates.TOKENIZER_RATE_HZ
    played = change_speed(0.5 * torch.sin(2 * torch.pi * 440 * t), factor)
    assert len(played) == pytest.approx(len(t) / factor, abs=2)
    spectrum = torch.fft.rfft(played * torch.hann_window(len(played))).abs()
    peak_hz = int(spectrum.argmax()) * rates.TOKENIZER_RATE_HZ / len(played)
    assert peak_hz == pytest.approx(440 * factor, abs=1.0)
    middle = played[len(played) // 4 : -len(played) // 4]
    assert float(middle.abs().max()) == pytest.approx(0.5, abs=0.01)
