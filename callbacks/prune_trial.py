"""Ends a run of a sweep early if its trial performs worse than others; added by the command line."""

from types import SimpleNamespace
from typing import Any

import optuna
from lightning.pytorch import LightningModule, Trainer
from optuna.pruners import BasePruner
from optuna_integration import PyTorchLightningPruningCallback

from lit_moss.runs.tracking import Tracker
from lit_moss.sweep.config import make
from lit_moss.sweep.study import open_storage
from lit_moss.sweep.trial import PrunableTrial


class PruneTrial(PyTorchLightningPruningCallback):
    """Optuna's callback for Lightning, in the process of the run.

    There are two differences: values are reported per optimizer step instead of per epoch, and a pruned run
    ends like a finished one, with a checkpoint and a record, instead of with an exception.

    Args:
        trial: The trial, its metric and the pruner.
        storage: Database of the study.
    """

    def __init__(self, trial: PrunableTrial, storage: str) -> None:
        study = optuna.load_study(
            study_name=trial.study,
            storage=open_storage(storage, trial.heartbeat_sec),
            sampler=optuna.samplers.RandomSampler(),  # not used for sampling
            pruner=make(trial.pruner, BasePruner, "pruner"),
        )
        own = next(t for t in study.get_trials(deepcopy=False) if t.number == trial.trial)
        super().__init__(optuna.trial.Trial(study, own._trial_id), trial.monitor)
        self.first_step, self.pruned = trial.first_step, False

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
