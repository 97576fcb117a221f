"""What a sweep hands to the run of a trial so that it can be pruned: environment variables.

They are no part of the recipe: a run's recipe is the same inside and outside a sweep.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

TRIAL_VARIABLE = "LIT_MOSS_TRIAL"  # JSON of a `PrunableTrial`
STORAGE_VARIABLE = "LIT_MOSS_STORAGE"  # database of the study; not in the JSON, since it may hold a password


@dataclass(frozen=True)
class PrunableTrial:
    """A trial of a study with a pruner.

    Args:
        study: Name of the study.
        trial: Number of the trial.
        monitor: Metric that the pruner compares.
        pruner: Class of the pruner, or class_path and init_args.
        heartbeat_sec: See `Sweep`.
        first_step: Added to the optimizer step of a report: later seeds of a trial run after earlier ones.
    """

    study: str
    trial: int
    monitor: str
    pruner: str | dict[str, Any]
    heartbeat_sec: int = 20
    first_step: int = 0

    def variables(self) -> dict[str, str]:
        """The environment that hands it to a run."""
        return {TRIAL_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> "PrunableTrial | None":
        """The trial that this process runs; None outside a sweep with a pruner."""
        text = os.environ.get(TRIAL_VARIABLE)
        return cls(**json.loads(text)) if text else None
