"""Ctrl-C in `fit` lost the steps since the last checkpoint; the exit code was 1, and MLflow said FAILED."""

import pytest
from recording import assert_equal, checkpoints, curves, fit, fit_in_process, mlflow_runs, recipe


def _interrupted(folder, corpus, times):
    stop = [{"class_path": "recording.InterruptAt", "init_args": {"step": 7, "times": times}}]
    return fit_in_process(folder, recipe(folder, corpus, 12, **{"trainer__callbacks+": stop}))


@pytest.mark.nightly
def test_the_state_after_the_step_is_written_and_the_next_run_loses_none(tmp_path, corpus):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(whole, recipe(whole, corpus, 12))
    done = _interrupted(stopped, corpus, 1)
    assert done.returncode == 130, done.stderr[-2000:]
    assert "stopping after this step, Ctrl-C again stops at once" in done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted, the state is saved: resume with --ckpt_path last"
    assert max(c["global_step"] for c in checkpoints(stopped).values()) == 7
    (run,) = mlflow_runs(stopped).values()
    assert run.info.status == "KILLED"
    fit(stopped, recipe(stopped, corpus, 12), "--ckpt_path", "last")
    ours, theirs = checkpoints(stopped)["step-0000010.ckpt"], checkpoints(whole)["step-0000010.ckpt"]
    assert_equal(ours["state_dict"], theirs["state_dict"], "state_dict")
    assert curves(stopped) == curves(whole)


@pytest.mark.nightly
def test_a_second_one_stops_at_once(tmp_path, corpus):
    done = _interrupted(tmp_path, corpus, 2)
    assert done.returncode == 130, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert max(c["global_step"] for c in checkpoints(tmp_path).values()) == 5
    (run,) = mlflow_runs(tmp_path).values()
    assert run.info.status == "KILLED"
