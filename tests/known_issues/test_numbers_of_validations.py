"""`validate` called every state "step 0", and `val/loss` left out the weights that the training has."""

import warnings

import pytest
import torch
from lm_recipe import lm_recipe
from recording import checkpoints, fit
from torch import tensor

from lit_moss.cli.main import main
from lit_moss.llm.losses import SplitLoss
from lit_moss.llm.metrics import LossSums


@pytest.mark.slow
def test_validate_names_the_step_of_the_checkpoint(tmp_path, capsys):
    path = lm_recipe(tmp_path / "run", 3, stages=[{"policy": "full"}])
    fit(tmp_path / "run", path)
    assert "last.ckpt" in checkpoints(tmp_path / "run")
    capsys.readouterr()
    root = str(tmp_path / "run/runs")
    with warnings.catch_warnings(record=True) as warned:
        assert main(["validate", "-c", str(path), "--run_root", root, "--ckpt_path", "last"]) == 0
    assert not any("callbacks used to create" in str(warning.message) for warning in warned)
    seen = capsys.readouterr()
    assert "validation at step 3: " in seen.err
    assert [line.split()[3] for line in seen.out.splitlines() if line.split()[1:2] == ["step"]] == ["3.0"]


def test_the_loss_of_a_validation_has_the_weights_of_the_training():
    weights = {"text": 0.25, "speech": 2.0}
    nll = {"text": 3.0, "speech": 5.0}
    counts = {"text": 4, "speech": 6}
    total = sum(weights[name] * nll[name] * counts[name] for name in weights) / sum(counts.values())
    loss = SplitLoss(
        total=tensor(total),
        text=tensor(nll["text"]),
        speech=tensor(nll["speech"]),
        text_count=tensor(counts["text"]),
        speech_count=tensor(counts["speech"]),
        text_correct=tensor(1),
        speech_correct=tensor(3),
        nll_BL=torch.zeros(1, 1),
        text_BLD=None,
    )
    sums = LossSums(torch.device("cpu"), weights)
    for _ in range(2):
        sums.add(loss)
    metrics = sums.metrics(lambda x: x)
    assert metrics["loss"] == pytest.approx(total)
    assert (metrics["text_loss"], metrics["speech_loss"]) == (3.0, 5.0)
