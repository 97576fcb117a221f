"""Targets of an optimizer step: of all its micro-batches on all ranks.

Gradients become the mean over ranks and over accumulated micro-batches. A micro-batch of n targets whose mean
loss is scaled by n * (ranks * micro-batches) / (targets of all of them) then adds each of its targets with
the same weight as any other: two ranks of one micro-batch equal one rank of two.
"""

from typing import NamedTuple

import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor

from lit_moss.contracts import TokenData, datamodule_of


class StepTargets(NamedTuple):
    """Size of an optimizer step.

    Args:
        targets: Targets of all its micro-batches on all ranks.
        parts: Number by which the sum of their gradients is divided: ranks times accumulated micro-batches.
    """

    targets: int
    parts: int


class Window:
    """The micro-batches of the optimizer step that a run is in.

    Which they are follows from where the loader began and from Lightning's batch number, so a resume changes
    nothing; how many targets they have is known from the order of packs before they are loaded.
    """

    def __init__(self) -> None:
        self._start: tuple[int, int] | None = None  # batch number, and micro-batch of the order, at the start
        self._last = range(0)
        self._targets = 0

    def targets(self, trainer: Trainer, batch_idx: int) -> StepTargets | None:
        """Of the step that this micro-batch belongs to; None where every micro-batch is a step of its own on
        one rank, which needs no weight, or where the data cannot say."""
        data = datamodule_of(trainer)
        ranks, accumulated = trainer.world_size, trainer.accumulate_grad_batches
        if ranks * accumulated == 1 or not isinstance(data, TokenData):
            return None
        if self._start is None:
            self._start = batch_idx, data.next_batch
        first, base = self._start
        # A run resumed with another number of accumulated micro-batches may begin in the middle of a window.
        begin = max(first, batch_idx - batch_idx % accumulated)
        end = batch_idx - batch_idx % accumulated + accumulated
        batches = range(base + (begin - first) * ranks, base + (end - first) * ranks)
        if batches != self._last:
            self._last, self._targets = batches, data.targets_of(batches)
        return StepTargets(self._targets, ranks * accumulated)

    def weighted(self, trainer: Trainer, batch_idx: int, mean: Tensor, count: Tensor, targets: int) -> Tensor:
        """A micro-batch's loss, scaled so that every target of its optimizer step weighs the same.

        Args:
            trainer: Of the run.
            batch_idx: Lightning's number of the micro-batch.
            mean: Its loss over its own targets, ().
            count: Its targets on the device, int64 ().
            targets: The same, as the host knows it.
        """
        step = self.targets(trainer, batch_idx)
        if step is None:
            return every_target_once(mean, count)
        return mean * (targets * step.parts / max(1, step.targets))


def every_target_once(mean: Tensor, count: Tensor) -> Tensor:
    """A rank's mean loss over its own targets, scaled so that the average over ranks, which is what
    gradients become, is the mean over the targets of all ranks.

    For data without a known order of targets, see `Window`: accumulated micro-batches then count the same,
    whatever their targets.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return mean
    own = count.float()
    total = own.clone()
    dist.all_reduce(total)
    return mean * (own * dist.get_world_size() / total.clamp_min(1))
