"""The validation before the first step: at step 0, and nothing else of the run changes."""

import json

import pytest
import yaml
from lm_recipe import lm_recipe
from recording import assert_equal, checkpoints, curves, fit

TIMED = ("train/tflops", "train/memory_gib")


def run(folder, *more, **trainer):
    path = lm_recipe(folder, 10)
    config = yaml.safe_load(path.read_text())
    config["trainer"]["callbacks"] += trainer.pop("callbacks", [])
    path.write_text(yaml.safe_dump(config))
    fit(folder, path, *more)
    return folder


@pytest.mark.nightly
def test_the_rest_of_the_run_is_the_same_to_the_bit(tmp_path):
    with_it = run(tmp_path / "with")
    without = run(tmp_path / "without", "--first_validation", "false")
    ours, theirs = ({k: v for k, v in curves(f).items() if k not in TIMED} for f in (with_it, without))
    validated = [name for name in ours if name.startswith(("val/", "heldout/"))]
    assert validated
    for name in validated:
        (step, _), *ours[name] = ours[name]
        assert step == 0, name
    assert ours == theirs
    states, plain = checkpoints(with_it), checkpoints(without)
    assert states.keys() == plain.keys()
    assert not any("0000000" in name for name in states)
    for name in states:
        for part in ("state_dict", "optimizer_states", "random_states", "loops", "global_step"):
            assert_equal(states[name][part], plain[name][part], part)
    # A resumed run does not repeat it.
    fit(with_it, lm_recipe(with_it, 12), "--ckpt_path", "last")
    assert [step for step, _ in curves(with_it)["val/loss"]].count(0) == 1


@pytest.mark.slow
def test_callbacks_that_end_a_run_do_not_see_it(tmp_path):
    """Nothing is better than the value before training, by this measure: the run would end at the first."""
    stop = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss", "patience": 1, "min_delta": 1e3},
    }
    folder = run(tmp_path / "run", "--trainer.val_check_interval", "4", callbacks=[stop])
    assert [step for step, _ in curves(folder)["val/loss"]] == [0, 4, 8]
    (file,) = folder.glob("runs/tiny/*/result.json")
    result = json.loads(file.read_text())
    losses = dict(curves(folder)["val/loss"])
    assert result["stopped"] == "early"
    assert result["highest"]["val/loss"] == max(losses[4], losses[8]) < losses[0]
