"""Ranks that a cluster starts one by one chose each a folder and a checkpoint of their own.

And a rank started by rank 0 took `best` from the fork that rank 0 had just begun, where there is none.
"""

import os
import subprocess
import sys

import launch
import pytest
import yaml
from lm_recipe import lm_recipe
from recording import fit, mlflow_runs

from lit_moss.runs import ranks
from lit_moss.runs.checkpoints import load_checkpoint
from lit_moss.runs.folder import RunFolder

BEST = {"class_path": "callbacks.Checkpoint", "init_args": {"monitor": "val/speech_accuracy", "mode": "max"}}


def recipe_of_two(folder, steps, *extra):
    path = lm_recipe(folder, steps, extra=[BEST, *extra])
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"devices": 2, "strategy": "ddp", "val_check_interval": 2}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.nightly
@pytest.mark.parametrize("started", ["by rank 0", "by a cluster"])
def test_a_fork_of_the_best_state_on_two_ranks(tmp_path, started):
    folder = tmp_path / "run"

    def go(steps, *more, started="by a cluster"):
        words = ["fit", "-c", str(recipe_of_two(folder, steps)), *more]
        if started == "by a cluster":
            done = launch.run(folder, *words, ranks=2)
        else:  # Lightning starts rank 1 by the command of rank 0
            variables = {k: v for k, v in os.environ.items() if k not in launch.OTHERS} | launch.ENVIRONMENT
            done = subprocess.run([sys.executable, "-m", "lit_moss", *words], cwd=folder, env=variables,
                                  capture_output=True, text=True, timeout=200)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    go(5)
    (run,) = (folder / "runs" / "tiny").iterdir()  # one folder, whoever made it
    best = load_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"]
    assert best < 5
    go(7, "--ckpt_path", "best", started=started)
    (fork,) = [p for p in run.parent.iterdir() if p != run]
    assert (fork / "checkpoints" / f"step-{best:07d}.ckpt").exists()
    assert len(mlflow_runs(folder)) == 2
    tags = mlflow_runs(folder)[RunFolder(fork).mlflow_run_id].data.tags
    assert f"step {best}" in tags["forked_from"]
    go(8, "--ckpt_path", "last")
    assert len(mlflow_runs(folder)) == 2
    assert load_checkpoint(fork / "checkpoints" / "last.ckpt")["global_step"] == 8


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun within srun
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1"}, False),  # Lightning's launcher on a second node
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_which_process_is_rank_zero(monkeypatch, variables, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks.is_rank_zero() == first


@pytest.mark.nightly
def test_a_fork_that_cannot_start_leaves_no_state_behind(tmp_path, capsys):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 10))
    (run,) = (folder / "runs" / "tiny").iterdir()
    state = run / "checkpoints" / "step-0000005.ckpt"
    wrong = {"class_path": "callbacks.LearningRateSchedule", "init_args": {"groups": {"tail": 2.0}}}
    fork = ("--run_name", "fork", "--ckpt_path", str(state))
    fit(folder, lm_recipe(folder, 10, rates=wrong), *fork, expected=2)
    assert "fits none of the groups" in capsys.readouterr().err
    assert not list(run.parent.glob("fork/checkpoints/*"))
    assert state.exists()
