"""Rank 0 chooses the folder and checkpoint of a run; all other ranks use its choice.

If each rank chose for itself, folders named by time would differ, and `last` and `best` would refer to
another run once rank 0 has started a new one.
"""

import json
import os
from typing import NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy

RUN_VARIABLE = "LIT_MOSS_RUN"  # JSON of a `Choice`, for child processes


class Choice(NamedTuple):
    """The choice of rank 0.

    Args:
        root: Root folder of all runs.
        name: Folder within `root`, with the runs of one name.
        version: Folder of this run within `name`.
        checkpoint: Checkpoint that the run starts from; None: a new run.
    """

    root: str
    name: str
    version: str
    checkpoint: str | None


def is_rank_zero() -> bool:
    """Whether this process is rank 0 of all nodes; Lightning only knows it once a trainer exists."""
    if "RANK" in os.environ:
        return not int(os.environ["RANK"])
    # Only NODE_RANK is set: Lightning's own launcher, started on each node by hand.
    names = ("LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK")
    return not any(int(os.environ.get(name) or 0) for name in names)


def inherited() -> Choice | None:
    """The choice of the parent process that started this one as another rank; None if there is none."""
    text = os.environ.get(RUN_VARIABLE)
    return None if is_rank_zero() or not text else Choice(*json.loads(text))


def waits_for_choice() -> bool:
    """Whether this process was started by a cluster and gets rank 0's choice from `agree`."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return not is_rank_zero() and RUN_VARIABLE not in os.environ and any(os.environ.get(n) for n in names)


def agree(trainer: Trainer, module: LightningModule, own: Choice) -> Choice:
    """Rank 0's choice, on every rank; call it before rank 0 writes anything.

    Processes that Lightning starts read it from their environment. Those of a cluster (torchrun, SLURM) are
    connected here, earlier than Lightning does.
    """
    choice, strategy = inherited() or own, trainer.strategy
    environment = strategy.cluster_environment if isinstance(strategy, ParallelStrategy) else None
    if choice is own and environment is not None and environment.creates_processes_externally:
        strategy.connect(module)
        strategy.setup_environment()
        choice = strategy.broadcast(own)
    os.environ[RUN_VARIABLE] = json.dumps(choice)
    return choice
