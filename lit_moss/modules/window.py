"""Targets of an optimizer step: of all its micro-batches on all ranks.

Gradients become the mean over ranks and over accumulated micro-batches. A micro-batch of n targets whose mean
loss is scaled by n * (ranks * micro-batches) / (targets of all of them) then adds each of its targets with
the same weight as any other: two ranks of one micro-batch equal one rank of two.
"""

from typing import Any, NamedTuple, cast

from lightning.pytorch import Trainer


class StepTargets(NamedTuple):
    """What an optimizer step is made of.

    Args:
        targets: Targets of all its micro-batches on all ranks.
        parts: By how many the sum of their gradients is divided: ranks times accumulated micro-batches.
    """

    targets: int
    parts: int


class Window:
    """The micro-batches of the optimizer step that a run is in.

    Which they are follows from where the loader began and Lightning's batch number, so a resume changes
    nothing; what targets they have is known from the order of packs before they are loaded.
    """

    def __init__(self) -> None:
        self._start: tuple[int, int] | None = None  # batch number, and micro-batch of the order, at the start
        self._last = range(0)
        self._targets = 0

    def targets(self, trainer: Trainer, batch_idx: int) -> StepTargets | None:
        """Of the step that this micro-batch belongs to; None where every micro-batch is a step of its own on
        one rank, which needs no weight, or where the data cannot say."""
        data: Any = cast(Any, trainer).datamodule
        ranks, accumulated = trainer.world_size, trainer.accumulate_grad_batches
        if ranks * accumulated == 1 or not hasattr(data, "targets_of"):
            return None
        if self._start is None:
            self._start = batch_idx, data.next_batch
        first, base = self._start
        # A run resumed with another number of accumulated micro-batches may begin in the middle of a window.
        begin = max(first, batch_idx - batch_idx % accumulated)
        end = batch_idx - batch_idx % accumulated + accumulated
        here = range(base + (begin - first) * ranks, base + (end - first) * ranks)
        if here != self._last:
            self._last, self._targets = here, data.targets_of(here)
        return StepTargets(self._targets, ranks * accumulated)
