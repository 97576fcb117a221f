"""Callbacks that spoil steps of a run, and note whether a step changed anything."""

import json
from copy import deepcopy
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging


class Poison(Callback):
    """Makes the loss NaN, or a gradient infinite while the loss stays finite, at some steps.

    Args:
        steps: Global steps, counted before the step.
        what: `loss` or `gradient`.
        rank: The rank that is spoilt; None means all.
        micro: Which micro-batch of the step.
    """

    def __init__(self, steps: list[int], what: str = "loss", rank: int | None = None, micro: int = 0):
        self.steps, self.what, self.rank, self.micro, self._now = steps, what, rank, micro, False

    def on_train_start(self, trainer, pl_module):
        step = pl_module.training_step

        def spoilt(*args, **kwargs):
            loss = step(*args, **kwargs)
            return loss * float("nan") if self._now and self.what == "loss" else loss

        pl_module.training_step = spoilt
        if self.what != "gradient":
            return
        last = [p for group in trainer.optimizers[0].param_groups for p in group["params"]][-1]
        last.register_hook(
            lambda g: torch.full_like(g, float("inf")) if self._now and self.what == "gradient" else g
        )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        here = self.rank is None or self.rank == trainer.global_rank
        micro = batch_idx % trainer.accumulate_grad_batches == self.micro
        self._now = here and micro and trainer.global_step in self.steps


class Moved(Callback):
    """Appends, for each optimizer step, which parts of the state it changed."""

    def __init__(self, path: str):
        self.path, self._before = path, None

    def _state(self, trainer, pl_module):
        averages = [
            c._average_model.state_dict() for c in trainer.callbacks if isinstance(c, WeightAveraging)
        ]
        parameters = {k for k, p in pl_module.named_parameters() if p.requires_grad}
        state = pl_module.state_dict()
        return deepcopy(
            {
                "weights": {k: v for k, v in state.items() if k in parameters},
                "buffers": {k: v for k, v in state.items() if k not in parameters},
                "moments": trainer.optimizers[0].state_dict()["state"],
                "averages": averages,
            }
        )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._before, self._step = self._state(trainer, pl_module), trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self._step:
            return
        now = self._state(trainer, pl_module)
        moved = sorted(k for k in now if not same(now[k], self._before[k]))
        with Path(f"{self.path}.{trainer.global_rank}").open("a") as file:
            file.write(json.dumps([self._step, moved]) + "\n")


class KeepGradients(Callback):
    """Saves the gradients of every optimizer step, before they are clipped: step -> name -> gradient."""

    def __init__(self, path: str):
        self.path, self._found = path, {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self._found[trainer.global_step] = {
            name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None
        }

    def on_train_end(self, trainer, pl_module):
        torch.save(self._found, f"{self.path}.{trainer.global_rank}")


class KeepState(Callback):
    """Saves the module's state of this rank at the end."""

    def __init__(self, path: str):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), f"{self.path}.{trainer.global_rank}")


class BreakWeights(Callback):
    """Weights that overflow in a step whose loss and gradients are finite."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(p for p in pl_module.parameters() if p.requires_grad).view(-1)[0] = float("inf")


class SpoilScore(Callback):
    """Logs `val/spoilt`: NaN at one step, else 1."""

    def __init__(self, step: int):
        self.step = step

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/spoilt", float("nan") if trainer.global_step == self.step else 1.0)


def same(a, b) -> bool:
    """Equality to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and bool(a.isnan().eq(b.isnan()).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def moved(path: Path, rank: int = 0) -> dict[int, list[str]]:
    """Step -> what `Moved` saw change."""
    return dict(json.loads(line) for line in Path(f"{path}.{rank}").read_text().splitlines())
