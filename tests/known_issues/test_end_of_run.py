"""A run whose steps are no multiple of the checkpoints' lost all behind the last of them."""

import pytest
from recording import assert_equal, checkpoints, curves, fit, recipe, seen


@pytest.mark.slow
@pytest.mark.parametrize("last", [13, 8])
def test_the_last_step_is_saved_and_a_longer_run_goes_on_from_it(tmp_path, corpus, last):
    """Behind step 8 comes a validation, behind 13 none."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, recipe(whole, corpus, 15))
    fit(parts, recipe(parts, corpus, last))
    assert f"step-{last:07d}.ckpt" in checkpoints(parts)
    fit(parts, recipe(parts, corpus, 15), "--ckpt_path", "last")
    ours, theirs = checkpoints(parts)["step-0000015.ckpt"], checkpoints(whole)["step-0000015.ckpt"]
    for part in ("state_dict", "optimizer_states", "random_states", "SpeechDataModule"):
        assert_equal(ours[part], theirs[part], part)
    assert curves(parts) == curves(whole)
    assert seen(parts) == seen(whole)
