"""Additional content of checkpoints that makes a resumed run equal, bit for bit, to an uninterrupted one."""

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from callbacks.learning_rate import set_rates
from lit_moss.errors import UserError
from lit_moss.optimizer_groups import NO_DECAY, part_of
from lit_moss.runs.tracking import Tracker
from lit_moss.trainer_access import ordered_data

_ACCUMULATED = "accumulate_grad_batches"  # key in checkpoints
# Settings of a parameter group that the configuration determines; `lr` is computed from them at each step.
_SETTINGS = ("base_lr", "weight_decay", "betas", "eps")


class ExactResume(Callback):
    """Adds the random state of every rank, the number of consumed batches, and the MLflow run id to
    checkpoints.

    The random state is restored at the start of training, after everything that draws random numbers during
    set-up. With another number of ranks the data order still continues exactly (it is a function, see
    `BatchOrder`), but random states cannot be redistributed: each rank is then seeded from the first rank's
    state, with a warning.

    Learning rates, weight decay and betas are those of the configuration with which a run is resumed.
    Otherwise the restored optimizer state would keep the old values, while MLflow records the new ones.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None
        self._settings: list[dict[str, Any]] = []
        self._saved: list[tuple[str, int]] = []  # name and number of parameters of the checkpoint's groups

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The optimizer state is restored after this hook.
        own = _names(_groups(trainer))
        if self._saved and self._saved != own:
            here, there = ({n.removesuffix(NO_DECAY): 0 for n, _ in names} for names in (own, self._saved))
            raise UserError(
                f"the checkpoint's optimizer has moments for {', '.join(there)}, this run trains "
                f"{', '.join(here)}: resume with the same freezing and sizes, or start a new run from it "
                "(model.init_args.init_from)"
            )
        self._settings = [
            {key: group[key] for key in (*_SETTINGS, "lr") if key in group} for group in _groups(trainer)
        ]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states: list[Any] = [_random_state()]
        if dist.is_available() and dist.is_initialized():
            states = [None] * trainer.world_size
            dist.all_gather_object(states, _random_state())
        tracker = trainer.logger if isinstance(trainer.logger, Tracker) else None
        if tracker is not None:
            # Lightning logs this step's metrics after the callbacks have run. If the process is killed in
            # between, they would be lost, because a resumed run starts at the next step. The tracker drops
            # duplicates.
            connector = trainer._logger_connector
            in_a_step = connector._first_loop_iter is not None
            if trainer.training and in_a_step and connector.should_update_logs:
                loggers = trainer.loggers
                trainer.loggers = list[Logger]([tracker])  # others would record the step twice
                try:
                    connector.log_metrics(connector.metrics["log"])
                finally:
                    trainer.loggers = loggers
            tracker.flush()
        checkpoint["random_states"] = states
        checkpoint[_ACCUMULATED] = trainer.accumulate_grad_batches
        checkpoint["mlflow_run_id"] = None if tracker is None else tracker.run_id

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._restored = checkpoint.get("random_states")
        accumulated = trainer.accumulate_grad_batches
        if trainer.state.fn == TrainerFn.FITTING and checkpoint.get(_ACCUMULATED, accumulated) != accumulated:
            _count_in_steps(checkpoint, accumulated)
        # Sharded strategies store the optimizer state elsewhere.
        self._saved = [entry for state in checkpoint.get("optimizer_states") or () if isinstance(state, dict)
                       for entry in _names(state.get("param_groups", ()))]  # fmt: skip

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is None:
            return
        self.apply_settings(trainer)
        if len(self._restored) == trainer.world_size:
            _set_random_state(self._restored[trainer.global_rank])
        else:
            rank_zero_warn(
                f"the checkpoint is of {len(self._restored)} ranks, this run has {trainer.world_size}: the "
                "data order continues exactly, the random state of each rank is seeded again"
            )
            first = int(self._restored[0]["torch"].long().sum())
            seed = first + trainer.global_step * 1009 + trainer.global_rank
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
        self._restored = None

    def apply_settings(self, trainer: Trainer) -> None:
        """Sets the parameter groups of a resumed run to the configured values; calling it again has no
        effect."""
        changed: dict[str, None] = {}
        for group, settings in zip(_groups(trainer), self._settings, strict=True):
            # Without `base_lr`, the optimizer's own rate is used, unless a Lightning scheduler changes it.
            own_rate = "base_lr" not in settings and not trainer.lr_scheduler_configs
            for key in (*_SETTINGS, "lr") if own_rate else _SETTINGS:
                if key in settings and key in group and group[key] != settings[key]:
                    part = part_of(group)
                    name = key.replace("base_lr", "lr")
                    changed[f"{name} of {part or 'all'} {group[key]} -> {settings[key]}"] = None
                    group[key] = settings[key]
        if changed:
            set_rates(trainer)
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            rank_zero_info(f"resumed with other settings: {', '.join(list(changed)[:4])}{more}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data = ordered_data(trainer)
        if data is not None:
            data.advance(trainer.world_size)


def _count_in_steps(checkpoint: dict[str, Any], accumulated: int) -> None:
    """Counts the micro-batches of a checkpoint as if all of its steps had had `accumulated` of them.

    Checkpoints are written between steps. With another `trainer.accumulate_grad_batches` than before,
    Lightning would otherwise continue within a step, whose first part would be missing.
    """
    loops = (checkpoint.get("loops") or {}).get("fit_loop") or {}
    progress = loops.get("epoch_loop.batch_progress")
    if progress is None:
        return
    moved = checkpoint["global_step"] * accumulated - progress["total"]["ready"]
    for counts in (progress["total"], progress["current"]):
        counts.update({name: count + moved for name, count in counts.items()})


def _groups(trainer: Trainer) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def _names(groups: Iterable[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(str(group.get("name", i)), len(group["params"])) for i, group in enumerate(groups)]


def _random_state() -> dict[str, Any]:
    """State of all random generators in plain types, which `torch.load(weights_only=True)` accepts."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, [int(k) for k in keys], position, has_gauss, gauss],
        "python": [version, list(numbers), gauss_next],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
