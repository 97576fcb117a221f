"""Which parameters are trained at a step, given the rules of all callbacks, and how freezing is applied.

A rule is a callback with `trained(parts, step)` and `ever_trained(parts)`, both pure functions that return
parameter names; several rules are intersected. Parts come from the module (`parts()`: part -> named
parameters).

  one process   without DDP: `requires_grad` follows the rules, so a frozen matrix gets no gradient
  DDP, FSDP2    the reducer must know at the start what will be trained later, so `requires_grad` is off only
                for parameters that are never trained; gradients of other frozen parameters are dropped before
                clipping and the optimizer step
  DeepSpeed     its optimizer holds flat pieces of whole groups: gradients of frozen parameters are set to 0
                as they arrive, the learning rate of the group is 0, and Adam's step counter is reset when the
                group starts to train. A part can only be frozen temporarily as a whole

In all three cases a frozen parameter does not change at all, and the others change as in a single process
(tests/callbacks/test_sharded.py).
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.weak import WeakIdKeyDictionary

from lit_moss.errors import UserError
from lit_moss.optimizer_groups import part_of
from lit_moss.trainer_access import all_names, freezing_rules, is_deepspeed, parts_of, waits_for_all_gradients

# DeepSpeed: parameter with a gradient hook -> whether it is currently frozen.
_is_frozen = WeakIdKeyDictionary()


def trained_names(trainer: Trainer, module: LightningModule, step: int) -> set[str]:
    """Names of the parameters that train at a step."""
    parts = parts_of(module)
    names = all_names(parts)
    for rule in freezing_rules(trainer):
        names &= rule.trained(parts, step)
    return names


def apply_freezing(trainer: Trainer, module: LightningModule, trained: set[str]) -> None:
    """Freezes everything except `trained`, in the way that the strategy requires.

    A group's `frozen` flag says whether every parameter in it is frozen.
    """
    parts = parts_of(module)
    deepspeed = is_deepspeed(trainer.strategy)
    alone = not waits_for_all_gradients(trainer)
    for part, named in parts.items():
        if deepspeed:
            _zero_frozen_gradients(part, named, trained)
        for name, p in named:
            if alone and p.requires_grad != (name in trained):
                p.requires_grad_(name in trained)
                p.grad = None
    step = trainer.global_step
    before = trained_names(trainer, module, step - 1) if step else set()
    frozen_before = {part for part in parts if not any(n in before for n, _ in parts[part])}
    frozen = {part for part in parts if not any(n in trained for n, _ in parts[part])}
    for number, group in enumerate(trainer.optimizers[0].param_groups):
        part = part_of(group)
        group["frozen"] = part in frozen
        if deepspeed and part in frozen_before:
            _reset_step_counter(trainer.optimizers[0], number)


def _zero_frozen_gradients(part: str, named: list[tuple[str, torch.nn.Parameter]], trained: set[str]) -> None:
    """DeepSpeed: sets gradients of frozen parameters to 0 before they are reduced, clipped or used."""
    trainable = [(name, p) for name, p in named if p.requires_grad]
    if len({name in trained for name, _ in trainable}) > 1:
        raise UserError(
            f"under DeepSpeed {part} can only be frozen as a whole for some steps, a pattern selects some of "
            "its parameters: name whole parts, or freeze its parameters in all stages"
        )
    for name, p in trainable:
        if p not in _is_frozen:
            p.register_hook(_hook_of(p))
        _is_frozen[p] = name not in trained


def _hook_of(p: torch.nn.Parameter) -> Any:
    def zero_if_frozen(gradient: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros_like(gradient) if _is_frozen[p] else None

    return zero_if_frozen


def _reset_step_counter(optimizer: Any, number: int) -> None:
    """Starts Adam's bias correction when a group starts to train, as without DeepSpeed."""
    inner = optimizer.optimizer
    flat = inner.param_groups[number]["params"]  # ZeRO-1, 2
    if "sub_group_to_group_id" in vars(optimizer):  # ZeRO-3
        pieces = optimizer.fp32_partitioned_groups_flat
        flat = [p for i, p in enumerate(pieces) if optimizer.sub_group_to_group_id[i] == number]
    for piece in flat:
        step = inner.state.get(piece, {}).get("step")
        if step is not None:
            step.zero_()


def drop_gradients(module: LightningModule, trained: set[str]) -> None:
    """Drops the gradients of frozen parameters; called before the optimizer step.

    AdamW changes neither a parameter without gradient nor its moments, and applies no weight decay to it.
    """
    for named in parts_of(module).values():
        for name, p in named:
            if name not in trained:
                p.grad = None
