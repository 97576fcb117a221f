"""Distances between a vocoder's waveform and the recording, in spectra of several resolutions.

    loss = mean over resolutions of   |S - S'|_F / |S|_F  +  mean |log S - log S'|         (S magnitudes)

Spectral convergence and log-magnitude distance of Parallel WaveGAN (arXiv:1910.11480, section 2.2). Windows
of several lengths constrain the phases: a wave whose magnitudes are correct under all of them is correct up
to its sign.

Shapes: B batch, L samples, F frequencies, K frames.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# (window, hop) in samples at 24 kHz: 85, 43, 21 and 5 ms.
RESOLUTIONS = ((2048, 512), (1024, 256), (512, 128), (128, 32))
_QUIETEST = 1e-4  # floor of the logarithm, below the noise of recordings


def magnitudes(wave_BL: Tensor, window: int, hop: int) -> Tensor:
    """Magnitudes of a Hann-windowed STFT: (B, L) -> (B, F, K)."""
    hann = torch.hann_window(window, device=wave_BL.device, dtype=wave_BL.dtype)
    spectrum = torch.stft(wave_BL, window, hop, window=hann, pad_mode="constant", return_complex=True)
    # Without the small term, the gradient of a magnitude of 0 would be NaN.
    return (spectrum.real.square() + spectrum.imag.square() + 1e-10).sqrt()


def stft_loss(
    made_BL: Tensor, truth_BL: Tensor, resolutions: Sequence[tuple[int, int]] = RESOLUTIONS
) -> Tensor:
    """Multi-resolution STFT loss, see the module docstring; ()."""
    total = made_BL.new_zeros(())
    for window, hop in resolutions:
        made_BFK, truth_BFK = (magnitudes(wave, window, hop) for wave in (made_BL, truth_BL))
        norm = torch.linalg.vector_norm
        convergence = norm(made_BFK - truth_BFK) / norm(truth_BFK).clamp(min=1e-3)
        logs = (made_BFK.clamp(min=_QUIETEST).log() - truth_BFK.clamp(min=_QUIETEST).log()).abs().mean()
        total = total + convergence + logs
    return total / len(resolutions)
