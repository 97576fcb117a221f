"""A run that stopped at NaN after its last checkpoint, resumed with a lower rate: the steps in between stayed
in MLflow as the old rate had made them, those of the new rate were dropped.
"""

import pytest
from lm_recipe import lm_recipe
from recording import fit, losses, mlflow_runs

OTHER_RULES = {
    "clip": ("--trainer.gradient_clip_val", "0.1"),
    "floor": ("--trainer.callbacks.LearningRateSchedule.init_args.floor", "0.5"),
    "accumulate": ("--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "8"),
}
LOWER = ("--model.init_args.lr", "0.001")
NAN = {"class_path": "poison.Poison", "init_args": {"steps": [7, 8, 9]}}


@pytest.mark.nightly
def test_steps_taken_again_with_another_rate_have_a_record_of_their_own(tmp_path, capfd):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 12, extra=[NAN]), expected=2)
    (old,) = mlflow_runs(folder)
    before = losses(folder, old)
    assert before[-1][0] >= 9
    fit(folder, lm_recipe(folder, 11), "--ckpt_path", "last", *LOWER)
    assert "recorded in a new MLflow run" in capfd.readouterr().err
    assert losses(folder, old) == before
    (new,) = mlflow_runs(folder).keys() - {old}
    assert [step for step, _ in losses(folder, new)] == [6, 7, 8, 9, 10, 11]
    record = mlflow_runs(folder)[new]
    assert record.data.tags["forked_from"] == f"run {old}, step 5"
    assert record.data.params["model.init_args.lr"] == "0.001"
    assert len(list((folder / "runs" / "tiny").iterdir())) == 1

    fit(folder, lm_recipe(folder, 13), "--ckpt_path", "last", *LOWER)  # the same settings go on in it
    assert len(mlflow_runs(folder)) == 2
    assert [step for step, _ in losses(folder, new)] == list(range(6, 14))


@pytest.mark.nightly
@pytest.mark.parametrize("words", OTHER_RULES.values(), ids=OTHER_RULES)
def test_so_do_steps_taken_again_with_other_rules(tmp_path, capfd, words):
    """Only options of the model were compared."""
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 12, extra=[NAN]), expected=2)
    fit(folder, lm_recipe(folder, 8), "--ckpt_path", "last", *words)
    assert "recorded in a new MLflow run" in capfd.readouterr().err
    assert len(mlflow_runs(folder)) == 2


@pytest.mark.nightly
def test_the_same_settings_go_on_in_the_same_record(tmp_path):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 12, extra=[NAN]), expected=2)
    fit(folder, lm_recipe(folder, 11), "--ckpt_path", "last")
    (run,) = mlflow_runs(folder)
    assert [step for step, _ in losses(folder, run)] == list(range(1, 12))


@pytest.mark.nightly
def test_a_setting_changed_back_is_recorded_too(tmp_path):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 1))
    for steps, words in ((2, LOWER), (3, LOWER), (4, ())):
        fit(folder, lm_recipe(folder, steps), "--ckpt_path", "last", *words)
    (run,) = mlflow_runs(folder).values()
    assert run.data.tags["resumed_with.model.init_args.lr"] == "0.003 -> 0.001 -> 0.003"
