"""Rank 0 chooses the folder and checkpoint of a run; all other ranks use its choice.

If every rank chose for itself, folders named by the time would differ, and `last` and `best` would mean
another run as soon as rank 0 has begun a new one.
"""

import json
import os
from typing import NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy

RUN_VARIABLE = "LIT_MOSS_RUN"  # JSON of a `Choice`, for the processes that this one starts


class Choice(NamedTuple):
    """What rank 0 has chosen.

    Args:
        root: Folder of all runs' files.
        name: Folder of the runs of one name below it.
        version: Folder of this run below that.
        checkpoint: Where the run starts from; None for a new one.
    """

    root: str
    name: str
    version: str
    checkpoint: str | None


def is_rank_zero() -> bool:
    """Whether this process is rank 0 of all nodes; Lightning knows that only once there is a trainer."""
    if "RANK" in os.environ:
        return not int(os.environ["RANK"])
    # NODE_RANK alone: Lightning's own launcher, called on every node by hand.
    names = ("LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK")
    return not any(int(os.environ.get(name) or 0) for name in names)


def inherited() -> Choice | None:
    """The choice of the process that started this one as another rank; None if no process did."""
    text = os.environ.get(RUN_VARIABLE)
    return None if is_rank_zero() or not text else Choice(*json.loads(text))


def waits_for_choice() -> bool:
    """Whether this process was started by a cluster and will get rank 0's choice from `agree`."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return not is_rank_zero() and RUN_VARIABLE not in os.environ and any(os.environ.get(n) for n in names)


def agree(trainer: Trainer, module: LightningModule, own: Choice) -> Choice:
    """Rank 0's choice, on every rank; call before rank 0 writes anything.

    Processes that Lightning starts itself read it from their environment. Those of a cluster (torchrun,
    SLURM) are connected here, earlier than Lightning does it.
    """
    choice, strategy = inherited() or own, trainer.strategy
    environment = strategy.cluster_environment if isinstance(strategy, ParallelStrategy) else None
    if choice is own and environment is not None and environment.creates_processes_externally:
        strategy.connect(module)
        strategy.setup_environment()
        choice = strategy.broadcast(own)
    os.environ[RUN_VARIABLE] = json.dumps(choice)
    return choice
