"""Validation metrics of the language model stood one step before what the terminal said.

The value before training had another precision than later ones, so that a constant seemed to move.
"""

import json
import re

import numpy as np
import pytest
from lm_recipe import lm_recipe
from recording import curves, fit, mlflow_runs


@pytest.mark.slow
def test_one_clock_and_one_precision(tmp_path, capfd):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 16))
    terminal = [int(n) for n in re.findall(r"validation at step (\d+)", capfd.readouterr().err)]
    found = curves(folder)
    assert terminal == [0, 8, 16]
    assert [step for step, _ in found["val/loss"]] == terminal
    assert [step for step, _ in found["train/loss"]] == list(range(1, 17))
    for name, points in found.items():
        if name.startswith(("val/", "heldout/")):
            assert all(float(np.float32(value)) == value for _, value in points), name
    (result,) = folder.glob("runs/tiny/*/result.json")
    assert "step" not in json.loads(result.read_text())["metrics"]


@pytest.mark.slow
def test_accumulated_micro_batches_count_as_one_step(tmp_path):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 8), "--trainer.accumulate_grad_batches", "2")
    found = curves(folder)
    assert [step for step, _ in found["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in found["val/loss"]] == [0, 4, 8]  # every eight micro-batches


@pytest.mark.slow
def test_throughput_leaves_out_the_time_of_validations(tmp_path):
    """The time of a validation counted as that of the training steps around it."""
    folder = tmp_path / "run"
    slow = {"class_path": "recording.SlowValidation"}
    fit(folder, lm_recipe(folder, 9, extra=[slow]), "--first_validation", "false")
    (run,) = mlflow_runs(folder).values()
    last = run.data.metrics["train/rows_per_sec"]  # of step 9, which follows a validation
    assert last > 2 * 96 / 3  # it has at most 2 x 96 rows
