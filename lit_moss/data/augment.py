"""Augmentation that draws from a given generator, so that a sample does not depend on who makes it."""

import numpy as np
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.features import resample


def spec_masks(
    rng: np.random.Generator,
    frames: int,
    bins: int,
    freq_masks: int,
    freq_bins: int,
    time_masks: int,
    time_share: float,
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """SpecAugment (arXiv:1904.08779): (start, end) of masked bins and of masked frames.

    Args:
        rng: Random numbers.
        frames: Mel frames of the item.
        bins: Mel bins.
        freq_masks: Number of frequency masks.
        freq_bins: Widest frequency mask in mel bins.
        time_masks: Number of time masks.
        time_share: Longest time mask as a share of the item.
    """

    def draw(count: int, widest: int, size: int) -> list[tuple[int, int]]:
        spans = []
        for _ in range(count):
            width = int(rng.integers(0, min(widest, size) + 1))
            start = int(rng.integers(0, size - width + 1))
            spans.append((start, start + width))
        return spans

    return draw(freq_masks, freq_bins, bins), draw(time_masks, int(time_share * frames), frames)


def apply_spec_masks(
    mel_BMF: Tensor, freq_B: list[list[tuple[int, int]]], time_B: list[list[tuple[int, int]]]
) -> Tensor:
    """Sets masked spans to 0, the middle of Whisper's normalised log-mel range; returns a new (B, M, F)."""
    if not any(freq_B) and not any(time_B):
        return mel_BMF
    mel_BMF = mel_BMF.clone()
    for item, (freq, time) in enumerate(zip(freq_B, time_B, strict=True)):
        for start, end in freq:
            mel_BMF[item, start:end] = 0.0
        for start, end in time:
            mel_BMF[item, :, start:end] = 0.0
    return mel_BMF


def change_speed(wave_T: Tensor, factor: float) -> Tensor:
    """Changes speed and pitch by `factor`, by resampling: (T,) -> (about T / factor,)."""
    return resample(wave_T, round(rates.TOKENIZER_RATE_HZ * factor), rates.TOKENIZER_RATE_HZ)
