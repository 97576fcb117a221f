"""A worker of a study whose objective is a formula: `worker.py SWEEP.yaml [SLOT_TO_DIE_IN]`."""

import os
import signal
import sys
import time
from pathlib import Path

from lit_moss.cli.sweep import read_sweep
from lit_moss.runs.launch import RunError
from lit_moss.sweep.study import ERROR, begin, open_study, work

sweep, _ = read_sweep(["-c", sys.argv[1]])
die_in = int(sys.argv[2]) if len(sys.argv) > 2 else -1


def objective(trial):
    slot, params = begin(trial, sweep)
    if slot == die_in:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(os.environ.get("PAUSE", "0")))
    with (Path(sys.argv[1]).parent / "done.txt").open("a") as file:
        file.write(f"{slot}\n")
    if params["model.init_args.lr"] < 0:
        trial.set_user_attr(ERROR, "negative")
        raise RunError("negative")
    return [(params["model.init_args.lr"] - 0.3) ** 2 + params["model.init_args.num_modality_layers"]]


work(open_study(sweep), sweep, objective)
