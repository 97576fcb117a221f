"""Learning-rate factors: pure functions of the optimizer step, so that a resume needs no stored state."""

import math

from lit_moss.errors import UserError


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, floor: float = 0.0) -> float:
    """Factor on the base rate at `step`, the number of optimizer steps done before it.

    (step + 1) / warmup_steps while step < warmup_steps; then with s = (step - warmup_steps) / (total_steps -
    warmup_steps), clipped to [0, 1]: floor + (1 - floor) (1 + cos(pi s)) / 2.

    Args:
        step: Optimizer steps done, from 0.
        warmup_steps: Length of the linear rise; 0 starts at the full rate.
        total_steps: Step at which the floor is reached.
        floor: Factor at the end, a share of the base rate.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share))


def rate_factor(kind: str, step: int, warmup_steps: int, total_steps: int, floor: float = 0.0) -> float:
    """Factor on the base rate at `step`: linear warm-up, then `cosine`, `linear` (both to `floor`)
    or `constant`.

    Args:
        kind: cosine, linear or constant.
        step: Optimizer steps done, from 0.
        warmup_steps: Length of the linear rise.
        total_steps: Step at which the floor is reached.
        floor: Factor at the end.
    """
    if kind == "cosine" or step < warmup_steps:
        return warmup_cosine(step, warmup_steps, total_steps, floor)
    if kind == "constant":
        return 1.0
    return 1.0 - (1.0 - floor) * min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))


def layerwise_lr(
    step: int, layer: int, N: int, k: int, w: int, T: int, eta_max: float, r: float = 0.1
) -> float:
    """Learning rate of a layer while layers are unfrozen last to first (arXiv:2510.00499, appendix D).

        d_i = (N - 1 - i) k,   D_i = T - d_i - w,   u = s - d_i,   eta_min = r eta_max

        eta_i(s) = 0                                                          u < 0
                   eta_max u / w                                         0 <= u < w
                   eta_min + (eta_max - eta_min)/2 (1 + cos(pi (u - w)/D_i))  w <= u <= w + D_i
                   eta_min                                                    u > w + D_i

    Args:
        step: s, optimizer steps done.
        layer: i, from 0; N - 1 is the last one and the first to be unfrozen.
        N: Layers to be unfrozen.
        k: Steps between two layers.
        w: Steps of warm-up.
        T: Step at which all layers have reached eta_min.
        eta_max: Peak rate.
        r: Final rate as a share of the peak.

    Raises:
        UserError: if T does not exceed (N - 1) k + w: layer 0 would have no time to decay (D_0 <= 0).
    """
    if (N - 1) * k + w >= T:
        raise UserError(
            f"layer-wise unfreezing of {N} layers every {k} steps with {w} of warm-up needs more than "
            f"{(N - 1) * k + w} steps, got {T}: lower k and w, or train longer"
        )
    u = step - (N - 1 - layer) * k
    if u < 0:
        return 0.0
    if u < w:
        return eta_max * u / w
    D = T - (N - 1 - layer) * k - w
    eta_min = r * eta_max
    if u > w + D:
        return eta_min
    return eta_min + (eta_max - eta_min) / 2 * (1 + math.cos(math.pi * (u - w) / D))
