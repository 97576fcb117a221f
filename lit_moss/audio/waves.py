"""Waves as tensors: validation of recordings passed to public functions, and batches."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_moss.audio import rates

# Lossy codecs and mixing slightly exceed 1; 24 dB over full scale means another unit.
LOUDEST = 16.0
EXPECTED = "expected float samples (T,) in [-1, 1], or (C, T) of which channel 0 is taken"


def check_wave(wave: Any) -> Tensor:
    """Samples of the first channel: float32 (T,) in [-1, 1], on the CPU, without gradient. T may be 0.

    Args:
        wave: Tensor or numpy array of floats, (T,) or (C, T).

    Raises:
        ValueError: if the wave is not an array of floats, has another shape (channels last: more channels
            than samples), or has samples that are not finite or far beyond [-1, 1].
    """
    if not isinstance(wave, Tensor | np.ndarray):
        raise ValueError(f"got {type(wave).__name__}, {EXPECTED}: a tensor or a numpy array")
    shape, kind = tuple(wave.shape), str(wave.dtype).removeprefix("torch.")
    if wave.ndim not in (1, 2) or not _is_float(wave):
        hint = f": divide {kind} by its full scale" if "int" in kind else ""
        raise ValueError(f"got {kind} of shape {shape}, {EXPECTED}{hint}")
    if wave.ndim == 2 and (not shape[0] or 0 < shape[1] < shape[0]):
        raise ValueError(f"got {shape}: {shape[0]} channels of {shape[1]} samples, {EXPECTED}: transpose it")
    first = wave if wave.ndim == 1 else wave[0]
    # Arrays are copied: torch accepts neither negative strides nor read-only memory.
    first_T = torch.from_numpy(np.array(first, np.float32)) if isinstance(first, np.ndarray) else first
    first_T = first_T.detach().float().cpu()
    reason = level_fault(first_T)
    if reason:
        raise ValueError(f"{reason}, {EXPECTED}")
    return first_T


def level_fault(wave_T: Tensor) -> str:
    """Why the samples cannot be a recording in [-1, 1]; "" if they can."""
    if not len(wave_T):
        return ""
    low, high = (float(x) for x in wave_T.aminmax())
    peak = max(-low, high)
    if not (low > float("-inf") and high < float("inf")):
        return "samples that are not finite"
    if peak > 1 and torch.equal(wave_T, wave_T.round()):
        return f"whole numbers up to {peak:g} (integers that were not divided by their full scale)"
    if peak > LOUDEST:
        return f"samples up to {peak:g} (not divided by their full scale)"
    return ""


def _is_float(wave: Tensor | np.ndarray) -> bool:
    return wave.dtype.is_floating_point if isinstance(wave, Tensor) else wave.dtype.kind == "f"


def pad_to_codes(waves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Zero-pads waves to whole codes of the longest: float (B, T), and lengths in samples, int64 (B,)."""
    samples_B = torch.tensor([len(wave) for wave in waves], dtype=torch.long)
    longest = rates.codes_of_samples(int(samples_B.max())) * rates.SAMPLES_PER_CODE if len(waves) else 0
    wave_BT = torch.zeros(len(waves), longest)
    for row, wave in zip(wave_BT, waves, strict=True):
        row[: len(wave)] = wave
    return wave_BT, samples_B
