"""Bad files must not end a run, and must not pass unseen either."""

import sys
from typing import Any, cast

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_moss.errors import UserError


class SkippedData(Callback):
    """Counts and names utterances that could not be read, logs `data/skipped`, stops above a share.

    Each utterance counts once. Ranks put their findings together at each validation and at the end; the share
    is the datamodule's `max_bad_share`.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._refuse_too_many(trainer)  # of what could not be read at setup, alike on all ranks

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
        logger = cast(Any, trainer.logger)
        if skipped and trainer.is_global_zero and hasattr(logger, "log_table"):
            logger.log_table({"utterance": list(skipped), "reason": list(skipped.values())}, "skipped.json")

    def _note(self, trainer: Trainer, batch: Any) -> bool:
        """Takes down what a batch skipped, each once; whether there was anything new."""
        skipped = _skipped(trainer)
        before = len(skipped)
        for line in batch.skipped:
            name, reason = line.split("\t", 1)
            if name not in skipped:
                skipped[name] = reason
                print(f"skipped {reason}", file=sys.stderr, flush=True)
        return len(skipped) > before

    def _gather(self, trainer: Trainer) -> None:
        if trainer.world_size > 1 and dist.is_initialized():
            found: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(found, _skipped(trainer))
            for one in found:
                _skipped(trainer).update(one)

    def _check(self, trainer: Trainer) -> None:
        datamodule = cast(Any, trainer).datamodule
        skipped = _skipped(trainer)
        if trainer.logger is not None and not trainer.sanity_checking and trainer.global_step:
            found = {"data/skipped": float(len(skipped))}
            if hasattr(datamodule, "left_out"):  # documents that do not fit the context, known from the start
                found["data/left_out"] = float(datamodule.left_out)
            trainer.logger.log_metrics(found, step=trainer.global_step)
        self._refuse_too_many(trainer)

    @staticmethod
    def _refuse_too_many(trainer: Trainer) -> None:
        datamodule = cast(Any, trainer).datamodule
        skipped, total = _skipped(trainer), datamodule.utterances
        # One bad file in a small corpus is no pattern, whatever share it makes.
        if len(skipped) > max(1, datamodule.max_bad_share * total):
            names = "; ".join(list(skipped.values())[:5])
            raise UserError(
                f"{len(skipped)} of {total} utterances cannot be read, more than data.max_bad_share "
                f"{datamodule.max_bad_share:.0%}: {names}{' …' if len(skipped) > 5 else ''}; repair or "
                "remove them, or raise the share"
            )


def _skipped(trainer: Trainer) -> dict[str, str]:
    return cast(Any, trainer).datamodule.skipped
