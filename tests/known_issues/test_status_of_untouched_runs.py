"""A refused start and `sweep --report` changed the status of a run that they had added nothing to."""

import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml
from lm_recipe import lm_recipe
from recording import fit, mlflow_runs

from lit_moss.cli.main import main
from lit_moss.runs.study_run import study_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.nightly
def test_a_refused_resume_leaves_a_finished_run_finished(tmp_path, capsys):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 5))
    (before,) = mlflow_runs(folder).values()
    assert before.info.status == "FINISHED"
    fit(folder, lm_recipe(folder, 8), "--ckpt_path", "last", "--data.init_args.batch_size", "3", expected=2)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    (after,) = mlflow_runs(folder).values()
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)


@pytest.mark.slow
@pytest.mark.parametrize("status", ["FINISHED", "KILLED", "RUNNING"])
def test_a_report_leaves_the_status_of_the_study(tmp_path, monkeypatch, capsys, status):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sweep = {
        "study": "s", "base": [str(ROOT / "conf" / "stage1.yaml")], "trials": 2,
        "search": {"model.init_args.lr": {"low": 1e-5, "high": 1e-2}}, "objectives": {"val/loss": "minimize"},
    }  # fmt: skip
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    tracker = study_run("s", tmp_path / "runs")
    run_id = tracker.run_id
    tracker.finalize("success")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    client.set_terminated(run_id, status, 1234) if status != "RUNNING" else client.update_run(run_id, status)
    before = client.get_run(run_id).info
    assert main(["sweep", "-c", "sweep.yaml", "--report"]) == 0
    after = client.get_run(run_id).info
    assert (after.status, after.end_time) == (before.status, before.end_time)
    assert "0 of 2 trials" in capsys.readouterr().out


@pytest.mark.slow
def test_a_report_of_a_study_that_never_began_leaves_no_run_running(tmp_path):
    sweep = {
        "study": "s", "base": [str(ROOT / "conf" / "stage1.yaml")], "trials": 1,
        "search": {"model.init_args.lr": {"low": 1e-5, "high": 1e-2}}, "objectives": {"val/loss": "minimize"},
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "lit_moss", "sweep", "-c", "sweep.yaml", "--report"]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = mlflow_runs(tmp_path, "s").values()
    assert run.info.status == "KILLED"


def _environment():
    import os

    kept = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return kept | {"PYTHONPATH": str(ROOT)}
