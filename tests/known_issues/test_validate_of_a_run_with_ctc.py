"""`validate` of a run trained with `model.ctc` took its labels from the training's text, and failed."""

import re

import pytest
from lm_recipe import lm_recipe
from recording import curves, fit

from lit_moss.cli.main import main

TEXT = ["--data.init_args.speech_text", "true"]
FULL = [{"policy": "full"}]


@pytest.mark.nightly
@pytest.mark.parametrize("vocab", ["text", "chars"])
def test_validate_measures_what_the_runs_own_validation_measured(tmp_path, monkeypatch, capsys, vocab):
    options = {"stages": FULL, "kind": "transcripts", "ctc": {"vocab": vocab, "layer": 2}}
    config = lm_recipe(tmp_path / "run", 8, **options)
    fit(tmp_path / "run", config, *TEXT)
    monkeypatch.chdir(tmp_path / "run")
    capsys.readouterr()
    assert main(["validate", "-c", str(config), *TEXT, "--ckpt_path", "last"]) == 0
    said = capsys.readouterr().out
    metrics = {name: float(value) for name, value in re.findall(r"(val/\w+)\W+([-\d.e]+)", said)}
    assert {"val/loss", "val/ctc", "val/ctc_error", "val/ctc_skipped"} <= metrics.keys()
    recorded = curves(tmp_path / "run")
    for name, value in metrics.items():
        assert recorded[name][-1] == (8, pytest.approx(value, rel=1e-4, abs=1e-6)), name


@pytest.mark.nightly
def test_a_checkpoint_without_a_head_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    fit(run, lm_recipe(run, 3, stages=FULL, kind="transcripts"), *TEXT)
    monkeypatch.chdir(run)
    config = lm_recipe(run, 3, stages=FULL, kind="transcripts", ctc={"layer": 2})
    assert main(["validate", "-c", str(config), *TEXT, "--ckpt_path", "last"]) == 2
    assert "has no head for CTC" in capsys.readouterr().err.splitlines()[-1]
