"""Augmentation that draws from a given generator, so that samples do not depend on worker processes."""

import numpy as np
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.features import resample
from lit_moss.errors import UserError


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
        rng: Random number generator.
        frames: Mel frames of the item.
        bins: Mel bins.
        freq_masks: Number of frequency masks.
        freq_bins: Maximum width of a frequency mask, in mel bins.
        time_masks: Number of time masks.
        time_share: Maximum length of a time mask as a fraction of the item.
    """

    def draw(count: int, widest: int, size: int) -> list[tuple[int, int]]:
        spans = []
        for _ in range(count):
            width = int(rng.integers(0, min(widest, size) + 1))
            start = int(rng.integers(0, size - width + 1))
            spans.append((start, start + width))
        return spans

    return draw(freq_masks, freq_bins, bins), draw(time_masks, int(time_share * frames), frames)


def check_masks(bins: int, freq_masks: int, freq_bins: int, time_masks: int, time_share: float) -> None:
    """Raises an error for invalid SpecAugment options.

    Args:
        bins: Number of mel bins.
        freq_masks: Number of frequency masks.
        freq_bins: Maximum width of a frequency mask, in mel bins.
        time_masks: Number of time masks.
        time_share: Maximum length of a time mask as a fraction of the item.

    Raises:
        UserError: if a value is negative, or there are no mel bins.
    """
    counts = {"freq_masks": freq_masks, "freq_mask_bins": freq_bins, "time_masks": time_masks}
    for name, value in counts.items():
        if value < 0:
            raise UserError(f"data.{name} is {value}, expected 0 or more")
    if bins < 1 or not 0.0 <= time_share <= 1.0:
        raise UserError(
            f"data.mel_bins is {bins} and data.time_mask_share {time_share}, expected 1 bin or more and a "
            "share from 0 to 1"
        )


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


def within_window(changed: Tensor, wave: Tensor) -> Tensor:
    """The changed wave; the original wave if the changed one is longer than the encoder's 30 s window."""
    return changed if len(changed) <= rates.MAX_SEGMENT_SAMPLES else wave
