"""Resuming from an older checkpoint went on in the same folder and MLflow run.

`last` then returned the branch that was left, and MLflow dropped the metrics of the new one.
"""

import shutil

import pytest
from lm_recipe import lm_recipe
from recording import assert_equal, fit, losses, mlflow_runs

from lit_moss.runs.checkpoints import load_checkpoint, newest_checkpoint
from lit_moss.runs.folder import RunFolder

LOWER = ("--model.init_args.lr", "0.001")


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """A run of ten steps with states 5 and 10; copied by each test."""
    folder = tmp_path_factory.mktemp("forks") / "ten"
    fit(folder, lm_recipe(folder, 10))
    return folder


@pytest.fixture
def run(ten, tmp_path):
    shutil.copytree(ten, tmp_path / "run")
    for shared in ("backbone", "interleaved-train", "interleaved-validation"):
        shutil.copytree(ten.parent / shared, tmp_path / shared)
    (origin,) = (tmp_path / "run" / "runs" / "tiny").iterdir()
    return origin


@pytest.mark.nightly
def test_an_older_checkpoint_begins_a_run_of_its_own(run, tmp_path, caplog):
    folder, config = tmp_path / "run", lm_recipe(tmp_path / "run", 10)
    origin_id = RunFolder(run).mlflow_run_id
    states = {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
    logged = losses(folder, origin_id)
    fit(folder, config, "--ckpt_path", str(run / "checkpoints" / "step-0000005.ckpt"), *LOWER)
    assert "this is a fork" in caplog.text
    (fork,) = [p for p in run.parent.iterdir() if p != run]
    assert {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()} == states
    assert losses(folder, origin_id) == logged

    last = newest_checkpoint(run.parent, "last")
    assert last == fork / "checkpoints" / "step-0000010.ckpt"
    theirs = load_checkpoint(run / "checkpoints" / "step-0000010.ckpt")
    assert load_checkpoint(last)["mlflow_run_id"] == RunFolder(fork).mlflow_run_id != origin_id
    with pytest.raises(AssertionError):  # another rate
        assert_equal(load_checkpoint(last)["state_dict"], theirs["state_dict"])

    runs = mlflow_runs(folder)
    new = runs[RunFolder(fork).mlflow_run_id]
    assert len(runs) == 2
    assert origin_id in new.data.tags["forked_from"]
    assert "step 5" in new.data.tags["forked_from"]
    assert new.data.params["model.init_args.lr"] == "0.001"
    assert "forked_from" not in runs[origin_id].data.tags
    assert [step for step, _ in losses(folder, new.info.run_id)] == [6, 7, 8, 9, 10]

    # The fork goes on as itself, the old run as itself.
    fit(folder, lm_recipe(tmp_path / "run", 12), "--ckpt_path", "last", *LOWER)
    assert newest_checkpoint(run.parent, "last") == fork / "checkpoints" / "last.ckpt"
    fit(folder, lm_recipe(tmp_path / "run", 11), "--ckpt_path", str(run))
    assert [step for step, _ in losses(folder, origin_id)] == list(range(1, 12))
    assert [step for step, _ in losses(folder, new.info.run_id)] == list(range(6, 13))
    assert len(mlflow_runs(folder)) == 2


@pytest.mark.nightly
def test_a_fork_that_ended_before_its_first_own_checkpoint_goes_on_from_where_it_forked(run, tmp_path):
    folder, config = tmp_path / "run", lm_recipe(tmp_path / "run", 5)
    fit(folder, config, "--run_name", "again", "--ckpt_path", str(run / "checkpoints" / "step-0000005.ckpt"))
    shutil.rmtree(run)  # what it was forked from may go
    assert newest_checkpoint(run.parent, "last") == run.parent / "again" / "checkpoints" / "step-0000005.ckpt"
    fit(folder, lm_recipe(tmp_path / "run", 7), "--ckpt_path", "last")
    (new,) = [r for r in mlflow_runs(folder).values() if "forked_from" in r.data.tags]
    assert [step for step, _ in losses(folder, new.info.run_id)] == [6, 7]


@pytest.mark.nightly
def test_the_newest_state_by_its_path_goes_on_in_its_run(run, tmp_path):
    folder, config = tmp_path / "run", lm_recipe(tmp_path / "run", 12)
    fit(folder, config, "--ckpt_path", str(run / "checkpoints" / "step-0000010.ckpt"))
    assert list(run.parent.iterdir()) == [run]
    assert len(mlflow_runs(folder)) == 1
    assert [step for step, _ in losses(folder, RunFolder(run).mlflow_run_id)] == list(range(1, 13))


@pytest.mark.nightly
def test_another_run_name_and_a_checkpoint_outside_of_a_run_are_forks_too(run, tmp_path):
    folder, config = tmp_path / "run", lm_recipe(tmp_path / "run", 11)
    fit(folder, config, "--ckpt_path", "last", "--run_name", "other")
    shutil.copy(run / "checkpoints" / "step-0000010.ckpt", tmp_path / "kept.ckpt")
    fit(folder, config, "--ckpt_path", str(tmp_path / "kept.ckpt"), "--run_name", "third")
    runs = mlflow_runs(folder)
    forked = [r for r in runs.values() if "forked_from" in r.data.tags]
    assert len(runs) == 3
    assert len(forked) == 2
    assert all(RunFolder(run).mlflow_run_id in r.data.tags["forked_from"] for r in forked)
    assert (run.parent / "other" / "checkpoints" / "last.ckpt").exists()
    assert (run.parent / "third" / "checkpoints" / "last.ckpt").exists()
