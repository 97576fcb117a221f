"""Batches of recordings, padded to whole codes."""

import torch

from lit_moss.audio import rates
from lit_moss.audio.waves import pad_to_codes


def test_pad_to_codes_pads_to_whole_codes_with_zeros():
    waves = [torch.rand(n) + 0.1 for n in (1, rates.SAMPLES_PER_CODE + 1, 700)]
    wave_BT, samples_B = pad_to_codes(waves)
    assert wave_BT.shape == (3, 2 * rates.SAMPLES_PER_CODE)
    assert wave_BT.dtype == torch.float32
    assert samples_B.dtype == torch.int64
    assert samples_B.tolist() == [1, rates.SAMPLES_PER_CODE + 1, 700]
    for row, wave in zip(wave_BT, waves, strict=True):
        assert torch.equal(row[: len(wave)], wave)
        assert not row[len(wave) :].any()


def test_pad_to_codes_adds_no_code_to_whole_ones_and_takes_nothing():
    assert pad_to_codes([torch.ones(2 * rates.SAMPLES_PER_CODE)])[0].shape == (1, 2 * rates.SAMPLES_PER_CODE)
    wave_BT, samples_B = pad_to_codes([])
    assert wave_BT.shape == (0, 0)
    assert samples_B.shape == (0,)
