"""Which parameters train at a step: the rules of all callbacks together, and how they are put into force.

A rule is a callback with `trained(parts, step)` and `ever_trained(parts)`, both pure functions that return
parameters' names; several rules intersect. Parts come from the module (`parts()`: part -> named parameters).

  one process   `requires_grad` follows the rules: a frozen matrix costs no gradient of its own
  DDP, FSDP2    what trains later must be known to the reducer from the start, so only what never trains is
                frozen for good; of the rest gradients are dropped before clipping and the optimizer see them
  DeepSpeed     its optimizer owns flat pieces of whole groups: gradients of frozen parameters are made 0 as
                they come, the group's rate is 0, and Adam counts its steps anew from the first one that
                trains. Parts can be frozen for a while only as wholes

In all three a frozen parameter moves by exactly 0, and what trains moves as in one process (tests/callbacks/
test_sharded.py).
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer

from lit_moss.errors import UserError

Parts = dict[str, list[tuple[str, torch.nn.Parameter]]]


def parts_of(module: LightningModule) -> Parts:
    """Part -> its named parameters."""
    if not hasattr(module, "parts"):
        raise UserError(
            f"{type(module).__name__} has no parts to freeze: StagedFreezing and ReverseUnfreeze are for "
            "SplitLLM"
        )
    return cast(Any, module).parts()


def rules(trainer: Trainer) -> list[Any]:
    """Callbacks that decide what trains."""
    return [c for c in cast(Any, trainer).callbacks if hasattr(c, "ever_trained")]


def all_names(parts: Parts) -> set[str]:
    """Names of all parameters."""
    return {name for named in parts.values() for name, _ in named}


def trained_names(trainer: Trainer, module: LightningModule, step: int) -> set[str]:
    """Names of the parameters that train at a step."""
    parts = parts_of(module)
    found = all_names(parts)
    for rule in rules(trainer):
        found &= rule.trained(parts, step)
    return found


def put_into_force(trainer: Trainer, module: LightningModule, trained: set[str]) -> None:
    """Freezes and thaws by the strategy's way; groups tell by `frozen` whether all of them rests."""
    parts = parts_of(module)
    deepspeed = any("deepspeed" in c.__name__.lower() for c in type(trainer.strategy).__mro__)
    alone = trainer.world_size == 1 and not deepspeed
    for part, named in parts.items():
        if deepspeed:
            _hold(part, named, trained)
        for name, p in named:
            if alone and p.requires_grad != (name in trained):
                p.requires_grad_(name in trained)
                p.grad = None
    step = trainer.global_step
    before = trained_names(trainer, module, step - 1) if step else set()
    rested = {part for part in parts if not any(n in before for n, _ in parts[part])}
    resting = {part for part in parts if not any(n in trained for n, _ in parts[part])}
    for number, group in enumerate(trainer.optimizers[0].param_groups):
        part = group.get("name", "").removesuffix(".no_decay")
        group["frozen"] = part in resting
        if deepspeed and part in rested:
            _count_anew(trainer.optimizers[0], number)


def _hold(part: str, named: list[tuple[str, torch.nn.Parameter]], trained: set[str]) -> None:
    """DeepSpeed: gradients of frozen parameters become 0 before they are summed, clipped or used."""
    held = [(name, p) for name, p in named if p.requires_grad]
    if len({name in trained for name, _ in held}) > 1:
        raise UserError(
            f"under DeepSpeed {part} can only be frozen as a whole for a while, a pattern cuts through it: "
            "name whole parts, or freeze its parameters in all stages"
        )
    for name, p in held:
        if not hasattr(p, "resting"):
            p.register_hook(partial(_zero_if_resting, p))
        cast(Any, p).resting = name not in trained


def _zero_if_resting(p: Any, gradient: torch.Tensor) -> torch.Tensor | None:
    return torch.zeros_like(gradient) if p.resting else None


def _count_anew(optimizer: Any, number: int) -> None:
    """Adam's correction of young averages starts when a group starts to train, as without DeepSpeed."""
    inner = optimizer.optimizer
    flat = inner.param_groups[number]["params"]  # ZeRO-1, 2
    if hasattr(optimizer, "sub_group_to_group_id"):  # ZeRO-3
        pieces = optimizer.fp32_partitioned_groups_flat
        flat = [p for i, p in enumerate(pieces) if optimizer.sub_group_to_group_id[i] == number]
    for piece in flat:
        step = inner.state.get(piece, {}).get("step")
        if step is not None:
            step.zero_()


def drop_gradients(module: LightningModule, trained: set[str]) -> None:
    """Before the optimizer's step.

    AdamW leaves a parameter without gradient alone, its moments and decay too.
    """
    for named in parts_of(module).values():
        for name, p in named:
            if name not in trained:
                p.grad = None


def total(named: Iterable[tuple[str, torch.nn.Parameter]]) -> int:
    """Parameters in all; ZeRO-3 leaves an empty tensor in a parameter's place and its count beside it."""
    return sum(getattr(p, "ds_numel", p.numel()) for _, p in named)
