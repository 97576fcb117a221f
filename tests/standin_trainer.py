"""Training on the stand-in device (`standin.py`) by the command line's `fit`, with its waits step by step."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy
from recording import fit
from standin import NAME, Transfers, standin


class StandInAccelerator(Accelerator):
    """What Lightning asks of a device."""

    def setup_device(self, device: torch.device) -> None:
        assert device.type == NAME

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return int(devices)

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [torch.device(NAME, i) for i in range(devices)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


AcceleratorRegistry.register(NAME, StandInAccelerator)


class OnStandIn(SingleDeviceStrategy):
    """One device."""

    def __init__(self) -> None:
        super().__init__(device=torch.device(NAME, 0))


class Waits(Callback):
    """Losses, and waits of the host, step by step.

    A step begins where its batch is handed to the module and ends where the next one's is; what a validation
    asks for is left out.
    """

    transfers = Transfers()  # of the run under way
    by_step: dict[int, Transfers]
    losses: list[float]

    def __init__(self) -> None:
        Waits.by_step, Waits.losses = {}, []

    def _cut(self, step: int | None) -> None:
        if step is not None:
            Waits.by_step.setdefault(step, Transfers()).extend(Waits.transfers)
        Waits.transfers.clear()

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self._cut(trainer.global_step - 1 if trainer.global_step else None)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"]
        Waits.losses.append(getattr(loss, "held", loss).item())  # not by way of the device: it is not counted

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        self._cut(trainer.global_step - 1)

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self._cut(None)

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self._cut(trainer.global_step - 1)


@dataclass
class Run:
    """What a fit showed.

    Args:
        waits: Waits of the host by step; empty on the CPU.
        losses: Loss of each micro-batch.
    """

    waits: dict[int, Transfers]
    losses: list[float]


def fit_on(device: str, config: Path, *more: str, **trainer: Any) -> Run:
    """The recipe's `fit` on `cpu`, `standin` or `cuda`, as a run that nobody watches.

    Metrics are logged every 1000 steps: what is written into MLflow has to come to the host.
    """
    content = yaml.safe_load(config.read_text())
    content["trainer"] |= {"log_every_n_steps": 1000} | trainer
    callbacks = [c for c in content["trainer"]["callbacks"] if "recording." not in c["class_path"]]
    content["trainer"]["callbacks"] = [*callbacks, {"class_path": "standin_trainer.Waits"}]
    content["trainer"]["accelerator"] = {"cuda": "gpu"}.get(device, device)
    if device == NAME:
        content["trainer"]["strategy"] = {"class_path": "standin_trainer.OnStandIn"}
    config.write_text(yaml.safe_dump(content))
    with standin() if device == NAME else contextlib.nullcontext(Transfers()) as Waits.transfers:
        fit(config.parent, config, *more)
    return Run(Waits.by_step, Waits.losses)
