"""The callback that writes `result.json`."""

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from lit_moss.contracts import StoppingCallback
from lit_moss.errors import UserError
from lit_moss.runs.launch import METRICS_VARIABLE
from lit_moss.runs.tracking import Tracker
from lit_moss.trainer_access import callbacks_of, later_metrics


class ResultFile(Callback):
    """Writes the step and metrics of a run to its `result.json`, for the program that started it.

    It is written at each validation, before the checkpoint, because a run killed after its last checkpoint
    does not validate again when it is resumed.

    Args:
        on_begin: Called on rank 0 once nothing can refuse the run any more.
    """

    def __init__(self, on_begin: Callable[[], None]) -> None:
        self._on_begin = on_begin

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._on_begin()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        # A sweep objective that no validation logs is detected here, not at the end of the run.
        known = {*trainer.callback_metrics, *later_metrics(pl_module)}
        missing = [m for m in json.loads(os.environ.get(METRICS_VARIABLE, "[]")) if m not in known]
        if missing:
            names = ", ".join(sorted(key for key in known if "/" in key))
            raise UserError(f"no metric {missing[0]} in a validation, expected one of {names}")

    @staticmethod
    @rank_zero_only
    def write(trainer: Trainer, ended: bool = False) -> None:
        """Writes `result.json`.

        Args:
            trainer: The trainer.
            ended: Whether the run has ended.
        """
        if not isinstance(trainer.logger, Tracker) or trainer.sanity_checking:
            return
        folder = trainer.logger.folder
        before: Mapping[str, Any] = folder.result() or {}
        # JSON has no NaN and no infinity; null replaces both.
        metrics = {
            key: float(value) if math.isfinite(value) else None
            for key, value in sorted(trainer.callback_metrics.items())
            if key != "step"
        }
        if not any("/" in key for key in metrics):
            metrics = before.get("metrics", {})
        judged = metrics if trainer.global_step else {}
        finished = trainer.global_step >= trainer.max_steps
        pruned = any(isinstance(c, StoppingCallback) and c.pruned for c in callbacks_of(trainer))
        folder.write_result(
            {
                "step": trainer.global_step if ended else 0,
                "stopped": ("pruned" if pruned else "early") if ended and not finished else None,
                "run_id": trainer.logger.run_id,
                "metrics": metrics,
                # Over all validations except one before the first step; a validation repeated after a resume
                # gives the same values again.
                "lowest": _extremes(min, before.get("lowest", {}), judged),
                "highest": _extremes(max, before.get("highest", {}), judged),
            }
        )


def _extremes(
    pick: Callable[[float, float], float], *each: dict[str, float | None]
) -> dict[str, float | None]:
    """Metric -> its minimum or maximum finite value in any of the dictionaries."""
    extremes: dict[str, float | None] = {}
    for key, value in (item for metrics in each for item in metrics.items()):
        if value is not None:
            before = extremes.get(key)
            extremes[key] = value if before is None else pick(before, value)
    return extremes
