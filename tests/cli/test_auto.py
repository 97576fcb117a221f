"""`--ckpt_path auto`: the same command begins a run and, after a requeue, continues it."""

import pytest
from lm_recipe import lm_recipe
from recording import fit, mlflow_runs

from lit_moss.cli.choose_run import find_start
from lit_moss.errors import UserError
from lit_moss.runs.checkpoints import newest_checkpoint, step_of


@pytest.mark.slow
def test_the_same_command_begins_a_run_and_continues_it(tmp_path):
    runs, job = tmp_path / "runs" / "tiny", ("--ckpt_path", "auto", "--run_name", "job-7")
    fit(tmp_path, lm_recipe(tmp_path, 3), *job)
    fit(tmp_path, lm_recipe(tmp_path, 5), *job)
    assert [path.name for path in runs.iterdir()] == ["job-7"]
    assert len(mlflow_runs(tmp_path)) == 1
    assert step_of(newest_checkpoint(runs, "last")) == 5

    fit(tmp_path, lm_recipe(tmp_path, 3), "--ckpt_path", "auto", "--run_name", "job-8")
    assert sorted(path.name for path in runs.iterdir()) == ["job-7", "job-8"]
    assert step_of(newest_checkpoint(runs, "last")) == 3

    fit(tmp_path, lm_recipe(tmp_path, 4), "--ckpt_path", "auto")  # the newest run of the name
    assert sorted(path.name for path in runs.iterdir()) == ["job-7", "job-8"]
    assert step_of(newest_checkpoint(runs, "last")) == 4


@pytest.mark.parametrize("run_name", [None, "job"])
def test_without_a_run_a_new_one_begins(tmp_path, run_name):
    assert find_start("auto", tmp_path, "fit", run_name) is None


def test_it_is_for_fit_alone(tmp_path):
    with pytest.raises(UserError, match="--ckpt_path auto is for fit"):
        find_start("auto", tmp_path, "predict")
