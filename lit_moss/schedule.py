"""Learning-rate factors: pure functions of the optimizer step, so that a resume needs no stored state."""

import math


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
