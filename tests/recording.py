"""What training tests share: a small recipe, a callback that notes what a run saw, comparison to the bit."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import launch
import mlflow
import numpy as np
import torch
import yaml
from database import give_database
from lightning.pytorch import Callback

from lit_moss.cli.main import main

ROOT = Path(__file__).resolve().parents[1]


class RecordIds(Callback):
    """Appends `step batch ids` of each training batch of this rank to a file."""

    def __init__(self, path: str):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with Path(f"{self.path}.{trainer.global_rank}").open("a") as file:
            file.write(json.dumps([trainer.global_step, batch.ids]) + "\n")


class DrawNumbers(Callback):
    """Consumes numbers of every generator at each step, so that a forgotten state shows in what follows."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]
        pl_module.log("train/drawn", sum(drawn))


class KillAt(Callback):
    """Kills the process, as `kill -9` does, at the end of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class TermAt(Callback):
    """Sends SIGTERM, as a cluster does before it takes a machine away, in a step."""

    def __init__(self, step: int, micro_batch: int = 0):
        self.step, self.micro_batch = step, micro_batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            if self.micro_batch == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            self.micro_batch -= 1


class InterruptAt(Callback):
    """Ctrl-C, once or several times, in a step."""

    def __init__(self, step: int, times: int = 1):
        self.step, self.times = step, times

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)


class TermParentAt(TermAt):
    """A signal, SIGTERM or that of Ctrl-C, to the process group of the program that has started the run."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.killpg(os.getpgid(os.getppid()), int(os.environ["LIT_MOSS_SENT"]))
            time.sleep(2)  # until it is gone and the run has seen it


class TermInValidation(Callback):
    """The same behind the first batch of the validation at a step."""

    def __init__(self, step: int):
        self.step = step

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.step and not batch_idx:
            os.kill(os.getpid(), signal.SIGTERM)


class SlowValidation(Callback):
    """Three seconds more for each validation."""

    def on_validation_start(self, trainer, pl_module):
        time.sleep(3)


def fit(folder, config, *more, expected=0):
    """`fit` in this process, with the folder as working folder."""
    before = Path.cwd()
    give_database(Path(folder))
    os.chdir(folder)
    os.environ.pop("LIT_MOSS_RUN", None)
    try:
        assert main(["fit", "-c", str(config), *more]) == expected
    finally:
        os.chdir(before)


def kill_behind_a_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    """`kill -9` as soon as a run's folder holds a checkpoint."""
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def fit_in_process(folder, config, *more, **environment):
    """`fit` in processes of its own, one a rank, which may be killed."""
    ranks = yaml.safe_load(Path(config).read_text())["trainer"].get("devices", 1)
    return launch.run(folder, "fit", "-c", str(config), *more, ranks=ranks, **environment)


def recipe(folder: Path, corpus: Path, steps: int, **changes) -> Path:
    """A YAML of a tiny tokenizer run; `changes` are dotted keys with `__` for the dot."""
    config = {
        "name": "tiny",
        "seed_everything": 7,
        "model": {
            "class_path": "lit_moss.modules.CodecEncoder",
            "init_args": {
                "init_from": None,
                "encoder": {
                    "num_mel_bins": 80,
                    "d_model": 64,
                    "encoder_attention_heads": 2,
                    "encoder_ffn_dim": 128,
                    "quantize_position": 2,
                    "quantize_vocab_size": 32,
                    "quantize_restart_interval": 3,
                },
                "head_layers": 1,
                "head_width": 64,
                "head_dropout": 0.1,
                "quantize_from_step": 7,
                "kmeans_batches": 2,
            },
        },
        "data": {
            "class_path": "lit_moss.data.SpeechDataModule",
            "init_args": {
                "train": [str(corpus / "train.jsonl")],
                "validation": [str(corpus / "validation.jsonl")],
                "batch_sec": 12,
                "max_sec": 10,
                "workers": 0,
                "time_masks": 1,
                "speeds": [0.9, 1.0],
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "precision": "32-true",
            "max_steps": steps,
            "val_check_interval": 8,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "gradient_clip_val": 1.0,
            "callbacks": [
                {
                    "class_path": "callbacks.LearningRateSchedule",
                    "init_args": {"warmup_steps": 5, "total_steps": 20},
                },
                {"class_path": "callbacks.ExactResume"},
                {"class_path": "callbacks.Progress", "init_args": {"every_n_sec": 600.0}},  # reads the device
                {"class_path": "callbacks.SkippedData"},
                {"class_path": "callbacks.Checkpoint", "init_args": {"every_n_steps": 5, "keep": 9}},
                {"class_path": "callbacks.Checkpoint", "init_args": {"monitor": "val/cer"}},
                {"class_path": "recording.RecordIds", "init_args": {"path": str(folder / "ids")}},
                {"class_path": "recording.DrawNumbers"},
            ],
        },
    }
    for key, value in changes.items():
        node = config
        *path, last = key.split("__")
        for part in path:
            node = node[part]
        if last == "callbacks+":
            node["callbacks"] = [*node["callbacks"], *value]
        else:
            node[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "conf.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def checkpoints(folder: Path) -> dict[str, dict]:
    """All checkpoints of all runs below a folder, by file name."""
    return {p.name: torch.load(p, weights_only=True) for p in folder.glob("runs/tiny/*/checkpoints/*.ckpt")}


def assert_equal(a, b, where=""):
    """Equality to the bit of nested structures of tensors and plain values."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def curves(folder: Path, name: str = "tiny") -> dict[str, list[tuple[int, float]]]:
    """Every metric of the only MLflow run of that name in a folder, without those that measure time."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(name)
    (run,) = client.search_runs([experiment.experiment_id])
    return {
        key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
        if not key.startswith("system/") and not key.endswith("_per_sec")
    }


def mlflow_runs(folder: Path, name: str = "tiny") -> dict[str, Any]:
    """MLflow run id -> run, of all runs of that name in a folder."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(name)
    return {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}


def losses(folder: Path, run_id: str) -> list[tuple[int, float]]:
    """Training loss of one MLflow run by step."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, "train/loss"))


def seen(folder: Path, ranks: int = 1) -> list[tuple[int, list[str]]]:
    """(step, ids) of all training batches in the order they were noted, rank by rank within a step."""
    files = [(folder / f"ids.{rank}").read_text().splitlines() for rank in range(ranks)]
    return [tuple(json.loads(line)) for step in zip(*files, strict=True) for line in step]


def assert_resumes(folder: Path, recipe: Any, *flags: str) -> dict[str, Any]:
    """Trains 15 steps at once and again with a stop after step 5; both end alike, to the bit.

    Args:
        folder: Gets both runs, `whole` and `parts`.
        recipe: Folder of a run, its steps -> its YAML.
        *flags: Of `fit`.

    Returns:
        The last checkpoint.
    """
    fit(folder / "whole", recipe(folder / "whole", 15), *flags)
    for stop in (5, 15):
        resume = ["--ckpt_path", "last"] if stop > 5 else []
        fit(folder / "parts", recipe(folder / "parts", stop), *flags, *resume)
    ours, theirs = (checkpoints(folder / f)["step-0000015.ckpt"] for f in ("parts", "whole"))
    for part in ("state_dict", "optimizer_states", "random_states", "global_step"):
        assert_equal(ours[part], theirs[part], part)
    assert all(name.startswith("lm.") for name in ours["state_dict"])
    assert seen(folder / "parts") == seen(folder / "whole")
    return ours
