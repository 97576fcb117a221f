"""Decides when checkpoints are written."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from lit_moss.errors import UserError
from lit_moss.modules.steps import StepModule
from lit_moss.runs.checkpoints import LAST, STEP, seal_folder, step_of
from lit_moss.trainer_access import callbacks_of


class Checkpoint(ModelCheckpoint):
    """Keeps the newest checkpoints of a run, or the best one: Lightning's `ModelCheckpoint` with two changes.

    A checkpoint due at a step with a validation is written after the validation; if it were written before, a
    resumed run would skip that validation and leave a gap in the curves. File names have fixed forms:
    `step-0000400.ckpt`, `best.ckpt`.

    A run that ends between two checkpoints also writes `last.ckpt`, from which `--ckpt_path last` continues.
    The next stage (`model.init_from`) still starts from the last checkpoint written every n steps.

    Args:
        every_n_steps: Optimizer steps between checkpoints for resuming; 0: none, and no `last.ckpt`.
        keep: Number of newest checkpoints to keep, besides the one that this start resumed from; -1: all.
        monitor: Metric whose best checkpoint is kept as `best.ckpt`, compared after each validation. None: no
            `best.ckpt`. Requires a separate callback without `every_n_steps`.
        mode: Whether the smallest (`min`) or the largest (`max`) value is best.
    """

    def __init__(
        self, every_n_steps: int = 0, keep: int = 2, monitor: str | None = None, mode: str = "min"
    ) -> None:
        best = monitor is not None
        if every_n_steps < 0 or keep < -1 or keep == 0 or mode not in ("min", "max"):
            raise UserError(
                f"Checkpoint got every_n_steps {every_n_steps}, keep {keep} and mode {mode!r}: expected 0 or "
                "more, 1 or more (-1 keeps all), min or max"
            )
        if best and every_n_steps:
            raise UserError(
                f"Checkpoint got monitor {monitor!r} and every_n_steps {every_n_steps}: one callback writes "
                "best.ckpt or states to resume from, list two (callbacks.Checkpoint) for both"
            )
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
        self.is_best, self._deferred = best, False

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Ignores non-finite scores, and modules that are not usable yet."""
        if self.is_best:
            finite = current is not None and bool(torch.isfinite(current))
            if not trainer.strategy.reduce_boolean_decision(finite):  # the score may differ between ranks
                return False
            module = trainer.lightning_module
            if isinstance(module, StepModule) and not module.is_usable:
                return False
        return super().check_monitor_top_k(trainer, current)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        folder = Path(filepath)
        if folder.is_dir():  # with shards all ranks have to be done
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                (folder / STEP).write_text(f"{trainer.global_step}\n")
                seal_folder(folder)
            trainer.strategy.barrier()
        if not self.is_best and folder.name != LAST:  # a resumed run has passed its earlier end
            trainer.strategy.remove_checkpoint(folder.with_name(LAST))
            self._remove_older(trainer, folder)

    def _remove_older(self, trainer: Trainer, newest: Path) -> None:
        """Keeps the `keep` newest checkpoints, and the one that this start resumed from.

        Lightning keeps those of all earlier starts, removes at most one at a time, and has an empty list
        after a resume with another `every_n_steps`.
        """
        if self.save_top_k < 1:
            return
        resumed = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).resolve()
        names = (path for path in newest.parent.glob("step-*.ckpt") if path.stem[5:].isdigit())
        states = sorted((step, path) for path in names if (step := step_of(path)) <= step_of(newest))
        for _, path in states[: -self.save_top_k]:
            if path.resolve() != resumed:
                trainer.strategy.remove_checkpoint(path)

    def _save_end(self, trainer: Trainer) -> None:
        """Writes the final state of a run, whatever ends it: its length, early stopping, a time limit.

        Not in `on_train_end`, when averaged weights have already replaced the current ones.
        """
        ends = trainer.should_stop or trainer.global_step >= trainer.max_steps >= 0
        if (
            ends
            and not self.is_best
            and self._every_n_train_steps
            and trainer.global_step > self._last_global_step_saved
        ):
            assert self.dirpath is not None  # set when training starts
            last = Path(self.dirpath) / LAST
            if trainer.is_global_zero and last.is_dir():  # an earlier end; shards are not replaced
                trainer.strategy.remove_checkpoint(last)
            trainer.strategy.barrier()
            self._save_checkpoint(trainer, str(last))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Finds the files of a moved or copied run by their names in its folder.

        If the path of the folder has changed, Lightning discards scores and file names, and would then
        overwrite a better `best.ckpt`.
        """
        old, new = state_dict.get("dirpath"), self.dirpath
        if old and new and old != new:
            here = {path: str(Path(new) / Path(path).name) for path in state_dict["best_k_models"]}
            scores = {
                here[path]: score
                for path, score in state_dict["best_k_models"].items()
                if Path(here[path]).exists()
            }
            worst, best = (max, min) if self.mode == "min" else (min, max)
            kept = worst(scores, key=scores.__getitem__) if scores else ""
            first = best(scores, key=scores.__getitem__) if scores else ""
            full = len(scores) == self.save_top_k
            state_dict = state_dict | {
                "dirpath": new,
                "best_k_models": scores,
                "best_model_path": first,
                "best_model_score": scores.get(first),
                "kth_best_model_path": kept if full else "",
                "kth_value": scores[kept] if full else self.kth_value,
                "last_model_path": "",
            }
        super().load_state_dict(state_dict)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return  # a checkpoint between micro-batches would lose the accumulated gradients
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        if not self.is_best and fetcher is not None and loop._should_check_val_fx(fetcher):
            self._deferred = True
        else:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._save_end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the current state on SIGTERM, which clusters send before they stop a job.

        SIGTERM is raised after a complete step (see `lit_moss.cli.signals`), or between two batches of a
        validation, in which averaged weights replace the current ones. The exception then gets the attribute
        `is_saved`.
        """
        if not isinstance(exception, SIGTERMException) or self.is_best or not self._every_n_train_steps:
            return
        if trainer.fit_loop._should_accumulate():  # with another program's trainer: gradients would be lost
            return
        if trainer.global_step > self._last_global_step_saved:
            callbacks = callbacks_of(trainer) if trainer.validating else []
            averaging = [c for c in callbacks if isinstance(c, WeightAveraging)]
            for callback in averaging:
                callback.on_validation_epoch_end(trainer, pl_module)
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            for callback in averaging:
                callback.on_validation_epoch_start(trainer, pl_module)
        exception.is_saved = self._last_global_step_saved > 0  # pyright: ignore[reportAttributeAccessIssue]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._deferred:
            self._deferred = False
            super().on_train_batch_end(trainer, pl_module, None, None, trainer.fit_loop.batch_idx)
            self._save_end(trainer)
        super().on_validation_end(trainer, pl_module)
