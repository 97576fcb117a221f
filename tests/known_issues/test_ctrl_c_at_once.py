"""Ctrl-C on `table7` and `variants` waited for runs in training; on a sweep it counted as their death."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from lm_recipe import lm_recipe

from lit_moss.runs.recipes import read_recipe
from lit_moss.sweep.study import INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
import subprocess, sys
from experiments.studies.parallel import run_all
from lit_moss.runs.launch import _returncode
print("begun", flush=True)
run_all({"a": lambda: _returncode([sys.executable, "-c", "import time; time.sleep(40)"])}, {}, 1)
"""


def test_a_study_ends_at_once(tmp_path):
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        study = subprocess.Popen(
            [sys.executable, "-c", STUDY], cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True
        )
    assert study.stdout is not None
    assert study.stdout.readline() == "begun\n"
    time.sleep(1.0)
    study.send_signal(signal.SIGINT)
    assert study.wait(20) != 0
    assert "KeyboardInterrupt" in errors.read_text()


def test_runs_that_follow_none_of_these_are_an_error():
    from experiments.studies.parallel import run_all

    with pytest.raises(ValueError, match="follow runs that are not among these"):
        run_all({"a": lambda: 1}, {"a": "b"}, 2)


@pytest.mark.nightly
def test_workers_of_a_sweep_note_that_they_were_interrupted(tmp_path):
    path = lm_recipe(tmp_path / "base", 4000)
    config = read_recipe([path])
    callbacks = config["trainer"]["callbacks"]
    config["trainer"]["callbacks"] = [c for c in callbacks if not c["class_path"].startswith("recording")]
    path.write_text(yaml.safe_dump(config))
    sweep = {
        "study": "rates",
        "base": [str(path)],
        "search": {"model.init_args.lr": {"choices": [1.0e-2, 3.0e-3]}},
        "objectives": {"val/speech_ppl": "minimize"},
        "sampler": "grid",
        "retries": 0,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "lit_moss", "sweep", "-c", "sweep.yaml", "--workers", "2"]
    sweeping = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    logs = [tmp_path / f"runs/rates/trial-00{i}-seed-1/log.txt" for i in range(2)]
    until = time.monotonic() + 200
    while not all(log.exists() and "step 3" in log.read_text() for log in logs):
        assert time.monotonic() < until
        assert sweeping.poll() is None
        time.sleep(0.5)
    os.killpg(sweeping.pid, signal.SIGINT)
    assert sweeping.wait(90) != 0
    study = optuna.load_study(study_name="rates", storage=f"sqlite:///{tmp_path}/sweeps.db")
    assert [INTERRUPTED in trial.user_attrs for trial in study.trials] == [True, True]
    for log in logs:
        assert "the state is saved" in log.read_text()
