"""A run whose last step was no multiple of the checkpoints' interval lost every step after its last one."""

import pytest
from lm_recipe import lm_recipe
from recording import assert_equal, checkpoints, curves, fit, recipe, seen

from lit_moss.runs.checkpoints import newest_checkpoint

EARLY = [{
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "val/loss", "patience": 1, "min_delta": 1e9},
}]  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("last", [13, 8])
def test_a_longer_run_goes_on_from_the_last_step(tmp_path, corpus, last):
    """Step 8 is validated, 13 is not."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, recipe(whole, corpus, 15))
    fit(parts, recipe(parts, corpus, last))
    assert checkpoints(parts)["last.ckpt"]["global_step"] == last
    fit(parts, recipe(parts, corpus, 15), "--ckpt_path", "last")
    assert "last.ckpt" not in checkpoints(parts)  # step 15 is a state like others
    ours, theirs = checkpoints(parts)["step-0000015.ckpt"], checkpoints(whole)["step-0000015.ckpt"]
    for part in ("state_dict", "optimizer_states", "random_states", "SpeechDataModule"):
        assert_equal(ours[part], theirs[part], part)
    assert curves(parts) == curves(whole)
    assert seen(parts) == seen(whole)


@pytest.mark.nightly
def test_a_run_that_stops_early_keeps_its_end_and_the_next_stage_starts_where_it_did(tmp_path):
    fit(tmp_path / "run", lm_recipe(tmp_path / "run", 30, extra=EARLY))
    folder = tmp_path / "run" / "runs" / "tiny"
    saved = checkpoints(tmp_path / "run")
    assert sorted(saved) == ["last.ckpt", "step-0000005.ckpt", "step-0000010.ckpt", "step-0000015.ckpt"]
    assert saved["last.ckpt"]["global_step"] == 16
    assert newest_checkpoint(folder, "last").name == "last.ckpt"
    assert newest_checkpoint(folder, "last", end=False).name == "step-0000015.ckpt"
    config = lm_recipe(tmp_path / "next", 1, init_from=str(folder))
    fit(tmp_path / "next", config)


@pytest.mark.nightly
def test_a_damaged_end_falls_back_to_the_state_before_and_is_named(tmp_path, capsys):
    fit(tmp_path / "run", lm_recipe(tmp_path / "run", 7))
    folder = tmp_path / "run" / "runs" / "tiny"
    last = newest_checkpoint(folder, "last")
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    assert newest_checkpoint(folder, "last").name == "step-0000005.ckpt"
    assert "last.ckpt is damaged" in capsys.readouterr().err


@pytest.mark.nightly
def test_an_old_end_left_by_a_kill_is_not_taken_for_the_newest(tmp_path):
    fit(tmp_path / "run", lm_recipe(tmp_path / "run", 7))
    folder = tmp_path / "run" / "runs" / "tiny"
    last = newest_checkpoint(folder, "last")
    old = last.read_bytes()
    fit(tmp_path / "run", lm_recipe(tmp_path / "run", 10), "--ckpt_path", "last")
    assert not last.exists()
    last.write_bytes(old)
    assert newest_checkpoint(folder, "last").name == "step-0000010.ckpt"
