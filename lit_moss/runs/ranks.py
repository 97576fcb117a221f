"""Rank 0 chooses a run's folder and checkpoint, all others take its choice.

Were every rank to choose, a folder named by the time would differ, and `last` and `best` would mean another
run as soon as rank 0 has begun a new one.
"""

import json
import os
from typing import NamedTuple

from lightning.pytorch import LightningModule, Trainer

RUN_VARIABLE = "LIT_MOSS_RUN"  # JSON of a `Choice`, for the processes that this one starts


class Choice(NamedTuple):
    """What rank 0 has chosen.

    Args:
        root: Folder of all runs' files.
        name: Folder of the runs of one name below it.
        version: Folder of this run below that.
        checkpoint: Where the run starts from, if it is resumed.
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
    """The choice of the process that has started this one as another rank; None if none has."""
    text = os.environ.get(RUN_VARIABLE)
    return None if is_rank_zero() or not text else Choice(*json.loads(text))


def waits_for_choice() -> bool:
    """Whether `agree` will give this process, started by a cluster, rank 0's choice."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return not is_rank_zero() and RUN_VARIABLE not in os.environ and any(os.environ.get(n) for n in names)


def agree(trainer: Trainer, module: LightningModule, own: Choice) -> Choice:
    """Rank 0's choice, on every rank; call before rank 0 writes anything.

    Processes that Lightning starts itself find it in their environment. Those of a cluster (torchrun, SLURM)
    meet here, earlier than Lightning would let them.
    """
    chosen, strategy = inherited() or own, trainer.strategy
    environment = getattr(strategy, "cluster_environment", None)
    if chosen is own and environment is not None and environment.creates_processes_externally:
        strategy.connect(module)
        strategy.setup_environment()
        chosen = strategy.broadcast(own)
    os.environ[RUN_VARIABLE] = json.dumps(chosen)
    return chosen
