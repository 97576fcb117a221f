"""A worker killed before its first heartbeat, and not yet waited for by its parent, counted as alive.

The other workers of the sweep waited for its trial without end.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from optuna.trial import TrialState

from lit_moss.cli.sweep import read_sweep
from lit_moss.sweep.study import WORKER, _machine, bury_and_requeue, open_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_zombie_is_dead(tmp_path):
    recipe = {
        "study": "zombie", "base": [str(ROOT / "conf" / "stage1.yaml")],
        "search": {"model.init_args.lr": {"low": 0.0, "high": 1.0}}, "objectives": {"val/loss": "minimize"},
        "trials": 1, "storage": f"sqlite:///{tmp_path}/sweeps.db",
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(recipe))
    sweep, _ = read_sweep(["-c", str(tmp_path / "sweep.yaml")])
    study = open_study(sweep)
    trial = study.ask()
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    trial.set_user_attr(WORKER, [*_machine(), worker.pid, psutil.Process(worker.pid).create_time()])
    bury_and_requeue(study, sweep)
    assert [t.state for t in study.get_trials()] == [TrialState.RUNNING]
    worker.kill()
    while psutil.Process(worker.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    bury_and_requeue(study, sweep)
    assert [t.state for t in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]
    os.waitpid(worker.pid, 0)
