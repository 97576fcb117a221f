"""When checkpoints are written."""

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from lit_moss.checkpoints import seal_folder


class Checkpoint(ModelCheckpoint):
    """The newest states of a run, or its best: Lightning's `ModelCheckpoint` with two habits changed.

    A state due at a step that is also validated is written after the validation: one written before it would,
    on a resume, skip that validation and leave a gap in the curves. And names are plain: `step-0000400.ckpt`,
    `best.ckpt`.

    Args:
        every_n_steps: Optimizer steps between two states, for resuming; 0 writes none of them. A run's last
            step is saved if it is a multiple.
        keep: How many of the newest states stay.
        monitor: Metric whose best state is kept as `best.ckpt`, looked at after each validation; None writes
            none.
        mode: Whether `min` or `max` of it is best.
    """

    def __init__(
        self, every_n_steps: int = 0, keep: int = 2, monitor: str | None = None, mode: str = "min"
    ) -> None:
        best = monitor is not None
        super().__init__(
            filename="best" if best else "step-{step:07d}",
            monitor=monitor if best else "step",
            mode=mode if best else "max",
            save_top_k=1 if best else keep,
            every_n_train_steps=None if best else every_n_steps,
            every_n_epochs=1 if best else None,
            save_on_train_epoch_end=False,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self._is_best, self._deferred = best, False

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """A score that is not finite is never the best, not even the first one."""
        if self._is_best and current is not None and not torch.isfinite(current):
            return False
        return super().check_monitor_top_k(trainer, current)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        folder = Path(filepath)
        if folder.is_dir():  # shards: all ranks have to be done
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                seal_folder(folder)
            trainer.strategy.barrier()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return  # between two micro-batches the gradients gathered so far would be lost
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        if not self._is_best and fetcher is not None and loop._should_check_val_fx(fetcher):
            self._deferred = True
        else:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """SIGTERM, as a cluster sends it before it takes a machine away: the state as it is, no step lost.

        Lightning raises it behind a whole step, or between two batches of a validation, during which averaged
        weights stand in for the current ones. Between two micro-batches nothing is written: the gradients
        gathered so far would be lost without a word.
        """
        if (
            isinstance(exception, SIGTERMException)
            and not self._is_best
            and self._every_n_train_steps
            and trainer.global_step > self._last_global_step_saved
            and not trainer.fit_loop._should_accumulate()
        ):
            callbacks = cast(Any, trainer).callbacks if trainer.validating else []
            averaging = [c for c in callbacks if isinstance(c, WeightAveraging)]
            for callback in averaging:
                callback.on_validation_epoch_end(trainer, pl_module)
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            for callback in averaging:
                callback.on_validation_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._deferred:
            self._deferred = False
            super().on_train_batch_end(trainer, pl_module, None, None, trainer.fit_loop.batch_idx)
        super().on_validation_end(trainer, pl_module)
