"""Cuts long audio at its quietest positions, so that every piece is within a limit and no sample is lost."""

import torch
from torch import Tensor

from lit_moss.audio.waves import check_wave


def cut_at_pauses(
    wave_T: Tensor, rate_hz: int, longest_sec: float, pause_sec: float = 0.2
) -> list[tuple[int, int]]:
    """Splits a wave into pieces (start, end), in samples, none longer than `longest_sec`.

    The pieces cover the wave without gap or overlap. Each cut is in the middle of the quietest `pause_sec`
    within the second half of the range before the limit.

    Raises:
        ValueError: if the limit is less than two samples, or the samples are invalid, see `check_wave`.
    """
    wave_T = check_wave(wave_T)
    limit = int(longest_sec * rate_hz)
    if limit < 2:
        raise ValueError(f"longest_sec {longest_sec} is less than two samples at {rate_hz} Hz")
    pause = max(1, min(int(pause_sec * rate_hz), limit // 2))
    energy = torch.cat([wave_T.new_zeros(1).double(), wave_T.double().square().cumsum(0)])
    pieces, start = [], 0
    while len(wave_T) - start > limit:
        low, high = start + limit // 2, start + limit - pause
        windows = energy[low + pause : high + pause] - energy[low:high]
        cut = low + int(windows.argmin()) + pause // 2 if len(windows) else start + limit
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, len(wave_T))]
