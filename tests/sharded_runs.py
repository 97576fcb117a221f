"""Checkpoints of two gloo ranks by FSDP2 and DeepSpeed, and beside each the weights as the ranks held them.

Run as a script: `sharded_runs.py FOLDER STRATEGY ...`; STRATEGY is a file of conf/trainer.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lm_recipe import lm_recipe
from sharded import ROOT, settings, start_ranks, wait_for

STRATEGIES = ["fsdp2", *(["deepspeed_1", "deepspeed_2", "deepspeed_3"] if find_spec("deepspeed") else [])]
STEPS = 4
# The text head never trains: DeepSpeed keeps such weights apart from the others.
STAGES = [{"policy": "full", "freeze": ["text_head"]}]


class KeepWeights(Callback):
    """Writes the weights that the ranks hold at the end to `path`, gathered by the strategy's own means."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        weights = {name: _whole(value) for name, value in pl_module.lm.named_parameters()}
        if trainer.is_global_zero:
            torch.save(weights, self.path)


def _whole(parameter: Any) -> torch.Tensor:
    if hasattr(parameter, "full_tensor"):
        return parameter.detach().full_tensor().clone()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach().clone()


def recipe(folder: Path, strategy: str, **model: Any) -> None:
    path = lm_recipe(folder, STEPS, stages=STAGES, kind="sft", **model)
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"devices": 2, "strategy": settings(strategy), "val_check_interval": STEPS}
    kept = [c for c in config["trainer"]["callbacks"] if not c["class_path"].endswith("DrawNumbers")]
    for c in kept:
        if c["class_path"] == "callbacks.Checkpoint":
            c["init_args"]["every_n_steps"] = 2
    keep = {"class_path": "sharded_runs.KeepWeights", "init_args": {"path": str(folder / "weights.pt")}}
    config["trainer"]["callbacks"] = [*kept, keep]
    path.write_text(yaml.safe_dump(config))


def train_all(folder: Path) -> None:
    """Trains one run a strategy in FOLDER/STRATEGY."""
    for strategy in STRATEGIES:
        recipe(folder / strategy, strategy)
    wait_for(start_ranks(1, folder, __file__, str(folder), *STRATEGIES), folder)


def tune_all(folder: Path) -> list[Path]:
    """One run a strategy that starts from FOLDER/STRATEGY/imported and changes nothing; their folders."""
    names = [f"{strategy}_again" for strategy in STRATEGIES]
    for strategy, name in zip(STRATEGIES, names, strict=True):
        imported = str(folder / strategy / "imported")
        recipe(folder / name, strategy, init_from=imported, backbone=imported, lr=0.0)
    wait_for(start_ranks(1, folder, __file__, str(folder), *names), folder)
    return [folder / name for name in names]


if __name__ == "__main__":
    from lit_moss.cli.main import main

    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/release")))
    sys.path.insert(0, str(ROOT / "tests/release"))
    for number, name in enumerate(sys.argv[2:]):
        os.chdir(Path(sys.argv[1]) / name)
        if number:  # of the run before; the first one's is what Lightning hands to the other rank
            os.environ.pop("LIT_MOSS_RUN", None)
        code = main(["fit", "-c", "conf.yaml", "--run_name", "run"])
        if code:
            sys.exit(code)
