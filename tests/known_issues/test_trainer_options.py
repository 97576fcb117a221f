"""Options of the trainer that did harm, or ended in a traceback.

A negative clip value reversed every gradient; `fast_dev_run` left a run without checkpoints, which `last`
took; a time between validations, an accelerator or strategy that does not exist, a negative seed, `test` of a
model without a test and `predict` without prompts raised errors of Lightning.
"""

import pytest
import torch
import yaml
from lm_recipe import lm_recipe
from recording import fit

from lit_moss.cli.main import main
from lit_moss.modules.steps import StepModule
from lit_moss.modules.vocoder import DISCRIMINATOR, Vocoder


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val is -1"),
        (["--trainer.gradient_clip_val", ".nan"], "trainer.gradient_clip_val is nan"),
        (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run is True, expected false"),
        (["--trainer.fast_dev_run", "2"], "trainer.fast_dev_run is 2, expected false"),
        (["--trainer.val_check_interval", "00:00:10:00"], "expected a number of micro-batches"),
        (["--trainer.val_check_interval", "0.5"], "trainer.val_check_interval is 0.5, expected a number of"),
        (["--trainer.accelerator", "gpux"], "the trainer cannot be made"),
        (["--trainer.strategy", "dpp"], "the trainer cannot be made"),
        (["--trainer.num_nodes", "0"], "the trainer cannot be made"),
        (["--seed_everything", "-1"], "seed_everything is -1, expected 0 to 4294967295"),
    ],
)
def test_they_are_refused_before_a_run_begins(tmp_path, capsys, words, message):
    fit(tmp_path / "run", lm_recipe(tmp_path / "run", 3), *words, expected=2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (tmp_path / "run" / "runs").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("kind", [StepModule, Vocoder])
def test_a_negative_clip_value_never_reaches_the_gradients(kind, algorithm):
    module = kind.__new__(kind)
    torch.nn.Module.__init__(module)
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.tensor([3.0, -4.0])
    groups = [{"params": [w], "name": name} for w, name in zip(weights, ("net", DISCRIMINATOR), strict=True)]
    clipped = []
    module.clip_gradients = lambda *args: clipped.append(args)
    module._trainer = type("Trainer", (), {"strategy": None})()
    module._fabric = None
    module.configure_gradient_clipping(torch.optim.SGD(groups, lr=0.1), -1.0, algorithm)
    assert all(w.grad.tolist() == [3.0, -4.0] for w in weights)
    assert [value for _, value, _ in clipped] == [-1.0]  # left to Lightning, which takes it for none


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("test", "SplitLLM has no test of its own: use validate"),
        ("predict", "gives nothing to predict: add a recipe that does, such as -c conf/predict/prompts.yaml"),
    ],
)
def test_verbs_without_anything_to_do_say_what_to_do(tmp_path, capsys, monkeypatch, verb, message):
    config = lm_recipe(tmp_path / "run", 5)
    fit(tmp_path / "run", config)
    monkeypatch.chdir(tmp_path / "run")
    assert main([verb, "-c", str(config), "--ckpt_path", "last"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.nightly
def test_validations_are_counted_in_micro_batches_of_whole_steps(tmp_path, capsys):
    config = lm_recipe(tmp_path / "run", 3)
    words = ["--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "3"]
    fit(tmp_path / "run", config, *words, expected=2)
    assert "expected a multiple of trainer.accumulate_grad_batches, 2" in capsys.readouterr().err
    assert yaml.safe_load(config.read_text())["trainer"]["max_steps"] == 3
