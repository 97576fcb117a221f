"""Optimal-transport conditional flow matching: path, loss, solver, guidance. Only equations, no network.

    y_t = (1 - (1 - sigma) t) z + t x1     z ~ N(0, 1), x1 the mel           (path)
    u   = x1 - (1 - sigma) z               = d y_t / d t                     (target velocity)
    L   = sum |v(y_t, t) - u|^2 / (frames * bands)                           (loss)
    x  <- x + (s_{i+1} - s_i) v(x, s_i),  s_i = 1 - cos(pi i / 2n)           (Euler, cosine steps)
    v   = (1 + w) v(conditioned) - w v(unconditioned)                        (guidance, w = 0.7)

A network may predict the mel instead of the velocity (`FlowConfig.predict`):

    v   = (x1(x, t) - x) / (1 - t)                                           (velocity of a predicted mel)
    L   = sum min(1 / (1 - t)^2, W) |x1(y_t, t) - x1|^2 / (frames * bands)   (loss; W = 1: of the mel itself)
    x  <- x + (s_{i+1} - s_i) / (1 - s_i) (x1(x, s_i) - x)                   (Euler; the last step ends at x1)

Lipman et al. (arXiv:2210.02747) with the choices of CosyVoice 2 (arXiv:2412.10117), whose decoder is trained
in arXiv:2510.00499, section 2.2. Shapes: B batch, M mel bands, T frames.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

SIGMA = 1e-6


def cosine_time(u: Tensor) -> Tensor:
    """Maps uniform draws in [0, 1) to times that are denser near 0, where the solver's steps are short."""
    return 1.0 - torch.cos(0.5 * math.pi * u)


def path(x1_BMT: Tensor, z_BMT: Tensor, t_B11: Tensor) -> tuple[Tensor, Tensor]:
    """Point of the path at time t, and the velocity there: (B, M, T) each."""
    return (1.0 - (1.0 - SIGMA) * t_B11) * z_BMT + t_B11 * x1_BMT, x1_BMT - (1.0 - SIGMA) * z_BMT


def loss(velocity_BMT: Tensor, target_BMT: Tensor, mask_B1T: Tensor) -> Tensor:
    """Mean squared error over real frames and all bands; ()."""
    return squared_errors(velocity_BMT, target_BMT, mask_B1T).sum() / (mask_B1T.sum() * velocity_BMT.shape[1])


def squared_errors(velocity_BMT: Tensor, target_BMT: Tensor, mask_B1T: Tensor) -> Tensor:
    """Sum of squared errors over the real frames of each item: (B,)."""
    return ((velocity_BMT - target_BMT) * mask_B1T).square().sum(dim=(1, 2))


def schedule(steps: int, start: float = 0.0) -> list[float]:
    """The steps + 1 times of the solver, from `start` to 1."""
    first = math.acos(1.0 - start) / (0.5 * math.pi)
    # Always on the CPU: the solver needs plain numbers, and copying them from a device would wait.
    span = torch.linspace(first, 1, steps + 1, dtype=torch.float32, device="cpu")
    return cosine_time(span).tolist()


def euler(velocity: Callable[[Tensor, int, float], Tensor], x: Tensor, times: Sequence[float]) -> Tensor:
    """Integrates dx/dt = velocity(x, i, t) from times[0] to times[-1]; i is the index of the step."""
    for i, (now, then) in enumerate(pairwise(times)):
        x = x + (then - now) * velocity(x, i, now)
    return x


def euler_to_mel(mel: Callable[[Tensor, int, float], Tensor], x: Tensor, times: Sequence[float]) -> Tensor:
    """Like `euler` with the velocity (mel(x, i, t) - x) / (1 - t), but without computing it: nothing is
    divided by 1 - t at t = 1, and a last step to time 1 ends exactly at the predicted mel."""
    for i, (now, then) in enumerate(pairwise(times)):
        way = 1.0 if then >= 1.0 else (then - now) / (1.0 - now)
        x = torch.lerp(x, mel(x, i, now), way)
    return x


def mel_weight(t: Tensor, most: float) -> Tensor:
    """Weight of the mel's squared error at time t: min(1 / (1 - t)^2, most).

    1 / (1 - t)^2 turns it into the squared error of the velocity; `most` = 1 leaves it unweighted.
    """
    return (1.0 - t).clamp(min=most**-0.5) ** -2.0


def guided(conditioned: Tensor, unconditioned: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598)."""
    return (1.0 + weight) * conditioned - weight * unconditioned
