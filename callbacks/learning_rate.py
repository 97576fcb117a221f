"""Learning rates as a function of the global step."""

import contextlib
import math
from abc import ABC, abstractmethod
from fnmatch import fnmatchcase
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_moss.contracts import ResumeSettings
from lit_moss.errors import UserError
from lit_moss.optimizer_groups import part_of
from lit_moss.schedule import rate_factor
from lit_moss.trainer_access import callbacks_of, rate_schedule


class Schedule(Callback, ABC):
    """Learning rates as a function of the step; the length, `total_steps`, is saved in checkpoints.

    A run resumed with a larger `trainer.max_steps` keeps its original length, so its rate stays at the
    minimum. To stretch the schedule, which makes the rate jump, set `total_steps`.
    """

    total_steps: int | None
    _total = 0
    _begun_with: int | None = None

    @abstractmethod
    def rate(self, step: int, group: dict[str, Any]) -> float:
        """Learning rate of a parameter group at a step."""

    def state_dict(self) -> dict[str, Any]:
        return {"total_steps": self._total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._begun_with = state_dict["total_steps"] or None

    def _set_length(self, trainer: Trainer) -> None:
        self._total = self.total_steps or self._begun_with or trainer.max_steps
        if self._total <= 0:
            raise UserError(
                f"{type(self).__name__} needs the run's length: set trainer.max_steps, or its total_steps"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._begun_with is None:  # not resumed
            return
        for callback in callbacks_of(trainer):  # a changed base rate, which others may apply only later
            if isinstance(callback, ResumeSettings):
                callback.apply_settings(trainer)
        if self.total_steps is None:  # states may be restored after `on_fit_start` (DeepSpeed)
            self._total = self._begun_with
        name, step, last = type(self).__name__, trainer.global_step, trainer.max_steps
        group = max(trainer.optimizers[0].param_groups, key=lambda group: group.get("base_lr", 0.0))
        if self._total != self._begun_with:
            now, before = self.rate(step, group), None
            with contextlib.suppress(UserError):  # other options may have changed, too
                before = self._rate_of(self._begun_with, step, group)
            if before not in (None, now):
                rank_zero_warn(
                    f"{name}: total_steps is {self._total}, the run began with {self._begun_with}: at step "
                    f"{step} the rate jumps from {before:.3g} to {now:.3g}"
                )
        elif self.total_steps is None and last > self._total:
            lowest, stretched = (self._rate_of(total, self._total, group) for total in (self._total, last))
            stays = lowest == self._rate_of(self._total, last, group)  # not if it ends within its warm-up
            if stays and lowest != stretched:
                rank_zero_warn(
                    f"{name}: the run began with a schedule of {self._total} steps and now continues to "
                    f"{last}: from step {self._total} on the rate stays at {lowest:.3g}. To stretch it, "
                    f"which makes the rate jump, give {name} total_steps: {last}"
                )

    def _rate_of(self, total: int, step: int, group: dict[str, Any]) -> float:
        """Learning rate at a step, for a schedule of length `total`."""
        own, self._total = self._total, total
        try:
            return self.rate(step, group)
        finally:
            self._total = own


class LearningRateSchedule(Schedule):
    """Sets the learning rate of every parameter group before each step.

    The rate is the group's base rate times a factor: linear warm-up, then a curve given by `kind`.

    Args:
        warmup_steps: Number of optimizer steps of the linear warm-up.
        total_steps: Step at which the minimum is reached. None: `trainer.max_steps`, or in a resumed run the
            length that it started with.
        floor: Minimum rate at the end, as a fraction of the base rate.
        kind: Curve after the warm-up: `cosine`, `linear` or `constant`.
        groups: Pattern of parts -> additional factor, e.g. {"audio_*": 2.0, "trunk": 0.5}. `trunk` means all
            its layers, `trunk.3` one of them. A pattern without a match is an error.
    """

    def __init__(
        self,
        warmup_steps: int = 100,
        total_steps: int | None = None,
        floor: float = 0.02,
        kind: Literal["cosine", "linear", "constant"] = "cosine",
        groups: dict[str, float] | None = None,
    ) -> None:
        if warmup_steps < 0 or not 0.0 <= floor <= 1.0:
            raise UserError(
                f"LearningRateSchedule got warmup_steps {warmup_steps} and floor {floor}, expected "
                "warmup_steps >= 0 and floor from 0 to 1"
            )
        self.warmup_steps, self.total_steps, self.floor = warmup_steps, total_steps, floor
        self.kind, self.groups = kind, dict(groups or {})
        if wrong := {part: factor for part, factor in self.groups.items() if not 0 <= factor < math.inf}:
            raise UserError(f"LearningRateSchedule's groups have factors {wrong}, expected 0 or more")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set_length(trainer)
        if self.warmup_steps >= self._total:
            rank_zero_warn(
                f"LearningRateSchedule: warmup_steps is {self.warmup_steps}, the schedule has {self._total} "
                f"steps: the rate only rises, to {self._total / self.warmup_steps:.2g} of the base rate"
            )
        groups = trainer.optimizers[0].param_groups
        for pattern in self.groups:
            if not any(_fits(group, pattern) for group in groups):
                names = dict.fromkeys(part_of(group) for group in groups)
                raise UserError(
                    f"LearningRateSchedule's group {pattern!r} fits none of the groups {', '.join(names)}"
                )

    def rate(self, step: int, group: dict[str, Any]) -> float:
        """Learning rate of a parameter group at a step."""
        factor = rate_factor(self.kind, step, self.warmup_steps, self._total, self.floor)
        for pattern, further in self.groups.items():
            if _fits(group, pattern):
                factor *= further
        # `base_lr`, not `lr`: in a resumed optimizer, `lr` is the rate of its last step.
        return group["base_lr"] * factor

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        set_rates(trainer)


def set_rates(trainer: Trainer) -> None:
    """Sets the learning rate of every group: 0 if it is frozen, else the schedule's or its base rate.

    Callbacks that freeze or unfreeze also call it, so that the order of callbacks does not matter.
    """
    schedule = rate_schedule(trainer)
    for group in trainer.optimizers[0].param_groups:
        if group.get("frozen"):
            group["lr"] = 0.0
        elif schedule is not None:
            group["lr"] = schedule.rate(trainer.global_step, group)
        elif "base_lr" in group:
            group["lr"] = group["base_lr"]


def _fits(group: dict[str, Any], pattern: str) -> bool:
    """Whether a pattern matches a group's part (`trunk.3`) or the first component of it (`trunk`).

    Norms belong to the same part as their matrices.
    """
    part = part_of(group)
    return fnmatchcase(part, pattern) or fnmatchcase(part.split(".")[0], pattern)
