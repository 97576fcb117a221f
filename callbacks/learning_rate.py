"""Learning rates as a function of the global step."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_moss.errors import UserError
from lit_moss.schedule import warmup_cosine


class LearningRateSchedule(Callback):
    """Sets every parameter group's rate before each step.

    The rate is the group's own base rate times a warm-up-and-cosine factor.

    Args:
        warmup_steps: Optimizer steps of the linear rise.
        total_steps: Step at which the floor is reached; None takes `trainer.max_steps`.
        floor: Rate at the end, as a share of the base rate.
    """

    def __init__(self, warmup_steps: int = 100, total_steps: int | None = None, floor: float = 0.02) -> None:
        if warmup_steps < 0 or not 0.0 <= floor <= 1.0:
            raise UserError(
                f"LearningRateSchedule got warmup_steps {warmup_steps} and floor {floor}, expected "
                "warmup_steps >= 0 and floor from 0 to 1"
            )
        self.warmup_steps, self.total_steps, self.floor = warmup_steps, total_steps, floor

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = self.total_steps or trainer.max_steps
        if total <= 0:
            raise UserError(
                "the learning rate needs the run's length: set trainer.max_steps, or total_steps of "
                "LearningRateSchedule"
            )
        self._total = total

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        factor = warmup_cosine(trainer.global_step, self.warmup_steps, self._total, self.floor)
        for group in trainer.optimizers[0].param_groups:
            # `base_lr` and not `lr`: a resumed optimizer comes back with the rate of its last step in `lr`.
            group["lr"] = group["base_lr"] * factor
