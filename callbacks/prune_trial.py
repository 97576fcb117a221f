"""Ends a run of a sweep early where its trial does worse than the others."""

import os
from types import SimpleNamespace
from typing import Any

import optuna
from lightning.pytorch import LightningModule, Trainer
from optuna.pruners import BasePruner
from optuna_integration import PyTorchLightningPruningCallback

from lit_moss.runs.tracking import Tracker
from lit_moss.sweep.study import STORAGE_VARIABLE, open_storage


class PruneTrial(PyTorchLightningPruningCallback):
    """Optuna's callback for Lightning, in the process of the run.

    It differs in two ways: values are reported by optimizer step (its epochs are not ours), and a pruned run
    ends as a finished one does, with a checkpoint and a record, instead of by an exception.

    Args:
        study: Its name.
        trial: Number of the trial.
        monitor: Metric to report.
        pruner: What decides.
        heartbeat_sec: As of the sweep.
        first_step: Added to the optimizer step: later seeds of a trial run after earlier ones.
    """

    def __init__(
        self,
        study: str,
        trial: int,
        monitor: str,
        pruner: BasePruner,
        heartbeat_sec: int = 20,
        first_step: int = 0,
    ) -> None:
        loaded = optuna.load_study(
            study_name=study,
            storage=open_storage(os.environ[STORAGE_VARIABLE], heartbeat_sec),
            sampler=optuna.samplers.RandomSampler(),  # draws nothing here
            pruner=pruner,
        )
        own = next(t for t in loaded.get_trials(deepcopy=False) if t.number == trial)
        super().__init__(optuna.trial.Trial(loaded, own._trial_id), monitor)
        self.first_step, self.pruned = first_step, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step: Any = SimpleNamespace(current_epoch=self.first_step + trainer.global_step)
        try:
            super().on_validation_end(trainer, step)
        except optuna.TrialPruned:
            trainer.should_stop = True
            self.pruned = True
        if self.is_ddp_backend:
            self.pruned = self._trial.storage.get_trial(self._trial._trial_id).system_attrs.get(
                "ddp_pl:pruned", False
            )
        if self.pruned and isinstance(trainer.logger, Tracker):
            trainer.logger.set_tags({"sweep.state": f"pruned at step {trainer.global_step}"})
