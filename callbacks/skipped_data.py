"""Unreadable items do not end a run, but are counted, reported by name, and limited in number."""

import sys
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_moss.contracts import Batch, TokenData
from lit_moss.errors import UserError
from lit_moss.runs.tracking import Tracker
from lit_moss.trainer_access import ordered_data


class SkippedData(Callback):
    """Counts and reports unreadable utterances, logs `data/skipped`, and stops the run above a fraction.

    Each utterance is counted once. Ranks exchange what they have skipped at each validation and at the end;
    the limit is the data module's `max_bad_share`. Data modules of other classes are ignored.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._refuse_too_many(trainer)  # data that was unreadable at set-up, the same on all ranks

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._note(trainer, batch) and trainer.world_size == 1:
            self._check(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._note(trainer, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._gather(trainer)
        self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._gather(trainer)
        skipped = _skipped(trainer)
        tracker = trainer.logger
        if skipped and trainer.is_global_zero and isinstance(tracker, Tracker):
            tracker.log_table({"utterance": list(skipped), "reason": list(skipped.values())}, "skipped.json")

    def _note(self, trainer: Trainer, batch: Any) -> bool:
        """Records the items that a batch skipped, once each; returns whether any of them is new."""
        skipped = _skipped(trainer)
        before = len(skipped)
        for line in batch.skipped if isinstance(batch, Batch) else ():
            name, reason = line.split("\t", 1)
            if name not in skipped:
                skipped[name] = reason
                print(f"skipped {reason}", file=sys.stderr, flush=True)
        return len(skipped) > before

    def _gather(self, trainer: Trainer) -> None:
        if trainer.world_size > 1 and dist.is_initialized():
            of_ranks: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(of_ranks, _skipped(trainer))
            for skipped in of_ranks:
                _skipped(trainer).update(skipped)

    def _check(self, trainer: Trainer) -> None:
        data = ordered_data(trainer)
        logged = trainer.logger is not None and not trainer.sanity_checking and trainer.global_step > 0
        if data is not None and trainer.logger is not None and logged:
            metrics = {"data/skipped": float(len(data.skipped))}
            if isinstance(data, TokenData):  # documents that do not fit the context, known from the start
                metrics["data/left_out"] = float(data.left_out)
            trainer.logger.log_metrics(metrics, step=trainer.global_step)
        self._refuse_too_many(trainer)

    @staticmethod
    def _refuse_too_many(trainer: Trainer) -> None:
        data = ordered_data(trainer)
        if data is None:
            return
        skipped, total = data.skipped, data.utterances
        # A single bad file never stops a run, even with a small corpus.
        if len(skipped) > max(1, data.max_bad_share * total):
            names = "; ".join(list(skipped.values())[:5])
            raise UserError(
                f"{len(skipped)} of {total} utterances cannot be read, more than data.max_bad_share "
                f"{data.max_bad_share:.0%}: {names}{' …' if len(skipped) > 5 else ''}; repair or "
                "remove them, or raise the share"
            )


def _skipped(trainer: Trainer) -> dict[str, str]:
    data = ordered_data(trainer)
    return {} if data is None else data.skipped
