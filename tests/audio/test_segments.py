"""Cutting long audio: pieces tile the wave, none is too long, cuts lie in pauses."""

from itertools import pairwise

import pytest
import torch

from lit_moss.audio.segments import cut_at_pauses


@pytest.mark.parametrize("samples", [0, 1, 1599, 1600, 1601, 5000, 40_000])
@pytest.mark.parametrize("longest_sec", [0.1, 0.25, 1.0])
def test_pieces_tile_the_wave_and_none_is_longer_than_the_limit(samples, longest_sec):
    torch.manual_seed(0)
    pieces = cut_at_pauses(torch.randn(samples), 16_000, longest_sec, pause_sec=0.02)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == samples
    assert all(a[1] == b[0] for a, b in pairwise(pieces))
    assert all(0 < end - start <= longest_sec * 16_000 for start, end in pieces if samples)


def test_a_limit_shorter_than_two_pauses_still_tiles():
    pieces = cut_at_pauses(torch.randn(10_000), 16_000, longest_sec=0.1, pause_sec=0.06)
    assert pieces[0][0] == 0
    assert all(a[1] == b[0] for a, b in pairwise(pieces))
    assert max(end - start for start, end in pieces) <= 1600


@pytest.mark.parametrize("silence", [(9_000, 13_000), (11_000, 14_500)])
def test_the_cut_lands_in_the_middle_of_the_quietest_pause(silence):
    torch.manual_seed(0)
    wave = torch.randn(24_000)
    wave[slice(*silence)] *= 0.01
    start, end = silence
    middle = (start + end) // 2
    wave[middle - 1600 : middle + 1600] = 0.0
    assert cut_at_pauses(wave, 16_000, 1.0) == [(0, middle), (middle, 24_000)]


def test_a_wave_within_the_limit_is_one_piece():
    assert cut_at_pauses(torch.randn(16_000), 16_000, 1.0) == [(0, 16_000)]
