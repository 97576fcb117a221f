"""Number of targets of an optimizer step, over all its micro-batches and ranks.

Gradients are averaged over ranks and accumulated micro-batches. The mean loss of a micro-batch with n targets
is scaled by n * (ranks * micro-batches) / (targets of all of them), so that every target has the same weight:
two ranks with one micro-batch each equal one rank with two.
"""

from typing import NamedTuple

import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor

from lit_moss.contracts import TokenData
from lit_moss.trainer_access import datamodule_of


class StepTargets(NamedTuple):
    """Size of an optimizer step.

    Args:
        targets: Number of targets of all its micro-batches on all ranks.
        parts: Divisor of the summed gradients: ranks times accumulated micro-batches.
    """

    targets: int
    parts: int


class AccumulationWindow:
    """The micro-batches of the current optimizer step.

    They are computed from where the loader began and from Lightning's batch number, so a resume changes
    nothing. Their numbers of targets are known from the order of packs, before they are loaded.
    """

    def __init__(self) -> None:
        self._start: tuple[int, int] | None = None  # batch number and micro-batch at the start
        self._last = range(0)
        self._targets = 0

    def targets(self, trainer: Trainer, batch_idx: int) -> StepTargets | None:
        """Targets of the optimizer step that this micro-batch belongs to.

        None if each step is a single micro-batch on one rank, which needs no weight, or if the data does not
        know its numbers of targets."""
        data = datamodule_of(trainer)
        ranks, accumulated = trainer.world_size, trainer.accumulate_grad_batches
        if ranks * accumulated == 1 or not isinstance(data, TokenData):
            return None
        if self._start is None:
            self._start = batch_idx, data.next_batch
        first, base = self._start
        # If the number of accumulated micro-batches has changed on resume, the run may begin within a window.
        begin = max(first, batch_idx - batch_idx % accumulated)
        end = batch_idx - batch_idx % accumulated + accumulated
        batches = range(base + (begin - first) * ranks, base + (end - first) * ranks)
        if batches != self._last:
            self._last, self._targets = batches, data.targets_of(batches)
        return StepTargets(self._targets, ranks * accumulated)

    def weighted(self, trainer: Trainer, batch_idx: int, mean: Tensor, count: Tensor, targets: int) -> Tensor:
        """Scales the loss of a micro-batch so that all targets of its optimizer step have equal weight.

        Args:
            trainer: The run's trainer.
            batch_idx: Lightning's number of the micro-batch.
            mean: Mean loss over the targets of the micro-batch, ().
            count: Number of its targets on the device, int64 ().
            targets: Number of its targets, as known on the host.
        """
        step = self.targets(trainer, batch_idx)
        if step is None:
            return every_target_once(mean, count)
        return mean * (targets * step.parts / max(1, step.targets))


def every_target_once(mean: Tensor, count: Tensor) -> Tensor:
    """Scales a rank's mean loss over its own targets so that the average over ranks (as for the gradients) is
    the mean over the targets of all ranks.

    For data whose numbers of targets are not known in advance, see `AccumulationWindow`: accumulated
    micro-batches then have equal weight, whatever their numbers of targets.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return mean
    own = count.float()
    total = own.clone()
    dist.all_reduce(total)
    return mean * (own * dist.get_world_size() / total.clamp_min(1))
