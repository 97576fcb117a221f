"""Parameter groups of an optimizer: weight decay acts on matrices alone, not on biases, norms and scales."""

from collections.abc import Iterable
from typing import Any

from torch import nn

NO_DECAY = ".no_decay"


def decay_groups(
    part: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of one part: `part` has the matrices, `part.no_decay` the rest, without weight decay.

    A group without parameters is left out. `base_lr` keeps the peak rate, `lr` is the rate of the step.

    Args:
        part: Name of the part, by which callbacks find its groups.
        parameters: Parameters that are trained.
        lr: Peak learning rate.
        weight_decay: AdamW's decay of the matrices.
    """
    split: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in parameters:
        # A shard of ZeRO-3 is flat and keeps the whole shape in an attribute of its own.
        split[len(getattr(parameter, "ds_shape", parameter.shape)) < 2].append(parameter)
    named = ((part, split[0], weight_decay), (part + NO_DECAY, split[1], 0.0))
    return [
        {"name": name, "params": params, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for name, params, decay in named
        if params
    ]


def part_of(group: dict[str, Any]) -> str:
    """Part of a group, without the mark for weight decay; empty for a group without a name."""
    return str(group.get("name", "")).removesuffix(NO_DECAY)
