"""Measures how much a busy process slows down a training, by how long waiting OpenMP threads spin.

    python -m experiments.benches.busy_neighbour [-c conf/quickstart_lm.yaml …] [--steps 6] [--busy 1]

Trains each recipe for a few steps with every setting, alone and next to single-threaded busy loops, each in
its own process with as many threads as the machine has cores. `default` is GNU OpenMP's default; lit_moss
sets GOMP_SPINCOUNT=1000 unless the user has set it or OMP_WAIT_POLICY.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_moss.data import TokenBatch

SETTINGS: dict[str, dict[str, str]] = {
    # An empty value is ignored by GNU OpenMP, and counts for lit_moss as a setting of the user.
    "default": {"GOMP_SPINCOUNT": ""},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "as lit_moss sets it": {},
}


class StepTimes(Callback):
    """Writes the number of rows (or utterances) and the end time of every batch to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._done: list[tuple[int, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rows = batch.real_rows if isinstance(batch, TokenBatch) else len(batch.ids)
        self._done.append((rows, time.monotonic()))
        self.path.write_text(json.dumps(self._done))


def rate(recipe: str, steps: int, variables: dict[str, str], busy: int, folder: Path) -> float:
    """Rows (language model) or utterances per second in `steps` steps, after a first one."""
    times = folder / "times.json"
    extra = folder / "extra.yaml"
    callback = {
        "class_path": "experiments.benches.busy_neighbour.StepTimes",
        "init_args": {"path": str(times)},
    }
    extra.write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    command = [sys.executable, "-m", "lit_moss", "fit", "-c", recipe, "-c", str(extra),
               "--run_root", str(folder / "runs"), "--trainer.max_steps", str(steps + 1),
               "--trainer.val_check_interval", "1000000"]  # fmt: skip
    if "_lm" in recipe:
        command += ["--first_validation", "false"]
    own = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in own} | variables
    environment |= {"OMP_NUM_THREADS": str(os.cpu_count()), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/m.db"}
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    batches = json.loads(times.read_text())
    return sum(rows for rows, _ in batches[1:]) / (batches[-1][1] - batches[0][1])


def main() -> None:
    """Prints one table for each recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-c", "--config", nargs="+", default=["conf/quickstart_lm.yaml", "conf/quickstart.yaml"]
    )
    parser.add_argument("--steps", type=int, default=6, help="measured, after a first one")
    parser.add_argument("--busy", type=int, default=1, help="busy loops beside the training")
    args = parser.parse_args()
    for recipe in args.config:
        print(
            f"\n{recipe}, rows or utterances a second\n\n"
            f"| setting | alone | beside {args.busy} busy |\n|---|---|---|"
        )
        for name, variables in SETTINGS.items():
            with tempfile.TemporaryDirectory() as folder:
                alone, beside = (
                    rate(recipe, args.steps, variables, busy, Path(folder)) for busy in (0, args.busy)
                )
            print(f"| {name} | {alone:.2f} | {beside:.2f} |", flush=True)


if __name__ == "__main__":
    main()
