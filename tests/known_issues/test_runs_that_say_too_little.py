"""Runs that went on without a word: no validation, a warm-up longer than the run, parts of predictions."""

import pytest
from lm_recipe import lm_recipe
from recording import fit, recipe

from lit_moss.cli.main import main


def warnings_of(recwarn):
    return [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)]


@pytest.mark.slow
def test_a_run_that_never_validates_says_so(tmp_path, corpus, recwarn):
    fit(tmp_path / "short", recipe(tmp_path / "short", corpus, 3))
    said = [text for text in warnings_of(recwarn) if "never validates" in text]
    assert said == [
        "trainer.val_check_interval is 8 micro-batches, the run has 3: it never validates, so there are no "
        "val/ metrics and no best.ckpt"
    ]
    recwarn.clear()
    fit(tmp_path / "long", recipe(tmp_path / "long", corpus, 8))
    assert not [text for text in warnings_of(recwarn) if "never validates" in text]


@pytest.mark.slow
def test_a_warm_up_longer_than_the_run_is_named_and_nothing_wrong_said_of_its_resume(tmp_path, recwarn):
    rates = {"class_path": "callbacks.LearningRateSchedule", "init_args": {"warmup_steps": 20}}
    fit(tmp_path, lm_recipe(tmp_path, 5, rates=rates))
    assert [text for text in warnings_of(recwarn) if "the rate only rises, to 0.25 of the base rate" in text]
    recwarn.clear()
    fit(tmp_path, lm_recipe(tmp_path, 10, rates=rates), "--ckpt_path", "last")
    assert not [text for text in warnings_of(recwarn) if "stays at" in text]  # it goes on rising


def test_validations_lie_between_steps(tmp_path, corpus, capsys):
    path = recipe(tmp_path, corpus, 8, trainer__accumulate_grad_batches=3)
    assert main(["fit", "-c", str(path)]) == 2
    assert "val_check_interval is 8 micro-batches, expected a multiple of" in capsys.readouterr().err


@pytest.mark.nightly
def test_predictions_of_several_devices_are_refused(tmp_path, corpus, monkeypatch, capsys):
    """Each rank wrote its part of the utterances into the same file."""
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, corpus, 8)
    assert main(["fit", "-c", str(path)]) == 0
    assert main(["predict", "-c", str(path), "--ckpt_path", "best"]) == 0
    (file,) = tmp_path.glob("runs/tiny/*/predictions.jsonl")
    lines = file.read_text().splitlines()
    words = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert main(["predict", "-c", str(path), "--ckpt_path", "best", *words]) == 2
    assert "predict on 2 devices, expected one" in capsys.readouterr().err
    assert file.read_text().splitlines() == lines
