"""A state due at a validated step is written after the validation, and shows it."""

import os

import pytest
from recording import checkpoints, curves, recipe

from lit_moss.cli.main import main

pytestmark = pytest.mark.nightly


def test_resume_at_a_validated_step_neither_skips_nor_repeats_it(tmp_path, corpus, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stop, more in ((10, []), (20, ["--ckpt_path", "last"])):
        config = recipe(tmp_path, corpus, stop, trainer__val_check_interval=5)
        os.environ.pop("LIT_MOSS_RUN", None)
        assert main(["fit", "-c", str(config), *more]) == 0
    assert [step for step, _ in curves(tmp_path)["val/cer"]] == [5, 10, 15, 20]
    assert {
        "step-0000005.ckpt",
        "step-0000010.ckpt",
        "step-0000015.ckpt",
        "step-0000020.ckpt",
        "best.ckpt",
    } <= set(checkpoints(tmp_path))


def test_validate_test_and_predict_take_the_best_checkpoint(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = str(recipe(tmp_path, corpus, 10, trainer__val_check_interval=5))
    assert main(["fit", "-c", config]) == 0
    for verb, shown in (
        ("validate", "val/cer"),
        ("test", "test/cer"),
        ("predict", "predictions.jsonl: 2 items"),
    ):
        capsys.readouterr()
        assert main([verb, "-c", config, "--ckpt_path", "best"]) == 0
        assert shown in capsys.readouterr().out
