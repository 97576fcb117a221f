"""A run resumed with more steps jumped from the lowest rate back to a high one: .10 to .65 from 40 to 80."""

import pytest
import yaml
from lm_recipe import lm_recipe
from recording import checkpoints, fit

RATES = {"class_path": "callbacks.LearningRateSchedule", "init_args": {"warmup_steps": 2, "floor": 0.1}}
LAYERS = {"class_path": "callbacks.ReverseUnfreeze", "init_args": {"k": 1, "w": 1, "floor": 0.2}}


def rates_of(folder, step):
    groups = checkpoints(folder)[f"step-{step:07d}.ckpt"]["optimizer_states"][0]["param_groups"]
    return {group["name"]: group["lr"] / group["base_lr"] for group in groups}


def config_of(folder, steps, rates):
    stages = [{"policy": "layerwise"}] if rates is LAYERS else None
    return lm_recipe(folder, steps, rates=rates, stages=stages)


@pytest.mark.nightly
@pytest.mark.parametrize(("rates", "floor"), [(RATES, 0.1), (LAYERS, 0.2)])
def test_a_longer_run_keeps_the_lowest_rate_and_says_so(tmp_path, rates, floor):
    folder = tmp_path / "run"
    fit(folder, config_of(folder, 10, rates))
    with pytest.warns(UserWarning, match=r"schedule of 10 steps and now continues to 15: .*total_steps: 15"):
        fit(folder, config_of(folder, 15, rates), "--ckpt_path", "last")
    assert rates_of(folder, 15) == pytest.approx(dict.fromkeys(rates_of(folder, 15), floor), rel=1e-12)
    # What was begun with stays: also for a second resume.
    with pytest.warns(UserWarning, match="schedule of 10 steps"):
        fit(folder, config_of(folder, 20, rates), "--ckpt_path", "last")
    assert rates_of(folder, 20) == pytest.approx(dict.fromkeys(rates_of(folder, 20), floor), rel=1e-12)


@pytest.mark.nightly
def test_a_stretched_course_is_a_decision_and_says_where_the_rate_jumps(tmp_path, recwarn):
    folder = tmp_path / "run"
    longer = yaml.safe_load(yaml.safe_dump(RATES))
    longer["init_args"]["total_steps"] = 20
    fit(folder, config_of(folder, 10, RATES))
    with pytest.warns(
        UserWarning, match=r"total_steps is 20, the run began with 10: at step 10 the rate jumps"
    ):
        fit(folder, config_of(folder, 15, longer), "--ckpt_path", "last")
    assert all(rate > 0.3 for rate in rates_of(folder, 15).values())
    recwarn.clear()
    fit(folder, config_of(folder, 20, RATES), "--ckpt_path", "last")  # the stretched course is the run's now
    assert not [w for w in recwarn if "total_steps" in str(w.message)]


@pytest.mark.nightly
def test_nothing_is_said_of_a_rate_that_does_not_change(tmp_path, recwarn):
    folder, constant = tmp_path / "run", RATES | {"init_args": {"kind": "constant", "warmup_steps": 2}}
    fit(folder, config_of(folder, 5, constant))
    fit(folder, config_of(folder, 10, constant), "--ckpt_path", "last")
    assert not [w for w in recwarn if "the rate" in str(w.message)]
    assert set(rates_of(folder, 10).values()) == {1.0}
