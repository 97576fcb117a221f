"""SIGTERM ended a run after its last checkpoint: all steps since were lost."""

import pytest
from recording import assert_equal, checkpoints, curves, fit, fit_in_process, recipe, seen


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "saved"), [(1, 7), (2, 7)])
def test_sigterm_writes_the_state_and_the_next_run_loses_no_step(tmp_path, corpus, accumulate, saved):
    changes = {"trainer__accumulate_grad_batches": accumulate}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(whole, recipe(whole, corpus, 12, **changes))
    term = [{"class_path": "recording.TermAt", "init_args": {"step": 7}}]
    path = recipe(stopped, corpus, 12, **changes, **{"trainer__callbacks+": term})
    done = fit_in_process(stopped, path)
    assert done.returncode == 143, done.stderr[-2000:]
    assert "resume with --ckpt_path last" in done.stderr
    assert max(c["global_step"] for c in checkpoints(stopped).values()) == saved
    fit(stopped, recipe(stopped, corpus, 12, **changes), "--ckpt_path", "last")
    ours, theirs = checkpoints(stopped)["step-0000010.ckpt"], checkpoints(whole)["step-0000010.ckpt"]
    for part in ("state_dict", "optimizer_states", "random_states", "SpeechDataModule"):
        assert_equal(ours[part], theirs[part], part)
    assert curves(stopped) == curves(whole)
    assert seen(stopped)[-1] == seen(whole)[-1]
