"""Environment variables with which a sweep makes the run of a trial prunable.

They are not part of the recipe: the recipe of a run is the same inside and outside of a sweep.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

TRIAL_VARIABLE = "LIT_MOSS_TRIAL"  # JSON of a `PrunableTrial`
STORAGE_VARIABLE = "LIT_MOSS_STORAGE"  # database of the study; separate, since it may contain a password


@dataclass(frozen=True)
class PrunableTrial:
    """A trial of a study with a pruner.

    Args:
        study: Name of the study.
        trial: Number of the trial.
        monitor: Metric that the pruner uses.
        pruner: Class of the pruner, or class_path and init_args.
        heartbeat_sec: Interval between signs of life in seconds, see `Sweep`.
        first_step: Offset of the steps that are reported: later seeds of a trial run after earlier ones.
    """

    study: str
    trial: int
    monitor: str
    pruner: str | dict[str, Any]
    heartbeat_sec: int = 20
    first_step: int = 0

    def variables(self) -> dict[str, str]:
        """Environment variables that pass the trial to a run."""
        return {TRIAL_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> "PrunableTrial | None":
        """The trial that this process runs; None outside of a sweep with a pruner."""
        text = os.environ.get(TRIAL_VARIABLE)
        return cls(**json.loads(text)) if text else None
