"""Options of Lightning's trainer that are refused, each with the reason and what to give instead."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy

from lit_moss.errors import UserError


def check_fit_options(config: Mapping[str, Any]) -> None:
    """Checks the options below `trainer` of a resolved configuration.

    Raises:
        UserError: for one that would make a run that cannot be resumed exactly, or that has no end.
    """
    if config.get("max_epochs") is not None:
        raise UserError(
            f"trainer.max_epochs is {config['max_epochs']}: runs are measured in steps (the data "
            "order has no end), set trainer.max_steps; the first line of a run says how many "
            "batches an epoch has"
        )
    if config.get("max_steps", -1) < 0:
        raise UserError("trainer.max_steps is not set: give the number of optimizer steps")
    for key in ("limit_train_batches", "overfit_batches"):
        if config.get(key):
            raise UserError(
                f"trainer.{key} is {config[key]}, expected none: Lightning would take the same "
                "batches again and again; trainer.max_steps is the length of a run"
            )
    if config.get("fast_dev_run"):
        raise UserError(
            f"trainer.fast_dev_run is {config['fast_dev_run']}, expected false: it would leave a run "
            "without checkpoints; a short one has a small trainer.max_steps"
        )
    clip = config.get("gradient_clip_val")
    if clip is not None and not (clip >= 0 and math.isfinite(clip)):
        raise UserError(
            f"trainer.gradient_clip_val is {clip}, expected a number above 0, or null for no clipping"
        )
    every, steps = config.get("val_check_interval"), config.get("accumulate_grad_batches") or 1
    if every is not None and not isinstance(every, int):
        raise UserError(
            f"trainer.val_check_interval is {every}, expected a number of micro-batches: validations "
            "belong to steps, so that a resumed run has the same ones"
        )
    if every and every % steps:
        raise UserError(
            f"trainer.val_check_interval is {every} micro-batches, expected a multiple of "
            f"trainer.accumulate_grad_batches, {steps}: a validation between two micro-batches of a "
            "step would save a best.ckpt without their gradients"
        )


def check_devices(trainer: Trainer) -> None:
    """Refuses Lightning's DeepSpeed strategy on other devices than CUDA GPUs.

    Lightning itself does so after the data has been prepared, with a traceback.

    Raises:
        UserError: for that strategy on another device.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DeepSpeedStrategy) or isinstance(trainer.accelerator, CUDAAccelerator):
        return
    if type(strategy).setup_environment is DeepSpeedStrategy.setup_environment:  # not a subclass' own
        name = type(trainer.accelerator).__name__.removesuffix("Accelerator").lower()
        raise UserError(
            f"trainer.strategy is {type(strategy).__name__} on accelerator {name}, expected CUDA GPUs: leave "
            "conf/trainer/deepspeed_….yaml out, or use conf/trainer/fsdp2.yaml, which also runs on CPUs"
        )
