"""Options that cannot be meant were taken: rates below 0 trained upwards, a sweep over `seed_everything` ran
every trial with the same seed, a mixture's empty `heldout` was that of its parts; others were tracebacks.
"""

import math

import pytest
import torch

from callbacks import LearningRateSchedule, SchedulePicture, StagedFreezing
from lit_moss.data import MixtureDataModule, TextDataModule
from lit_moss.errors import UserError
from lit_moss.modules import SplitLLM
from lit_moss.modules.steps import StepModule
from lit_moss.sweep.config import Sweep


@pytest.mark.parametrize(
    ("group", "options"),
    [
        ({"lr": -1e-3}, {}),
        ({"lr": math.nan}, {}),
        ({}, {"lr": math.inf}),
        ({"weight_decay": -0.1}, {}),
        ({}, {"betas": (0.9, 1.0)}),
    ],
)
def test_an_optimizer_that_cannot_train_is_refused_in_one_line(group, options):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "name": "trunk.no_decay"} | group]
    with pytest.raises(UserError, match="expected"):
        StepModule().adamw(groups, **{"lr": 1e-3} | options)
    assert StepModule().adamw([{**groups[0], "lr": 0.0, "weight_decay": 0.0}]).param_groups


def test_factors_and_weights_are_0_or_more():
    for factor in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="factors"):
            LearningRateSchedule(groups={"trunk": factor})
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="text_weight"):
            SplitLLM(text_weight=weight)
    SplitLLM(text_weight=0.0)


@pytest.mark.parametrize(
    "stages",
    [
        ["full"],
        [{"train": "audio_*"}],
        [{"train": None}],
        [{"train": ["*"], "freeze": "text_*"}],
        [{"policy": ["full"]}],
        [{"policy": "stage1", "until_step": "ten"}, {"policy": "full"}],
        [{"policy": "stage1", "until_step": -3}, {"policy": "full"}],
        [{"policy": "stage1", "until_step": 2.5}, {"policy": "full"}],
        [{"policy": "listening", "layers": 0}],
        [{"policy": "listening", "layers": -2}],
    ],
)
def test_stages_of_other_types_are_one_line(stages):
    with pytest.raises(UserError):
        StagedFreezing(stages)


def test_stages_of_the_right_types_stay():
    stages = [{"train": ["audio_*"], "freeze": None, "until_step": 0}, {"policy": "full", "until_step": None}]
    assert StagedFreezing(stages).stage_at(0) == 1


@pytest.mark.parametrize("options", [{"seed": -1}, {"workers": -1}, {"heldout_items": -1}])
def test_data_modules_refuse_numbers_below_0(options):
    with pytest.raises(UserError, match="expected 0 or more"):
        TextDataModule(**options)


def test_a_mixture_takes_its_own_heldout_and_finite_epochs():
    def mixture(epochs=1.0, **options):
        return MixtureDataModule([TextDataModule(validation=["a.txt"])], [epochs], **options)

    assert mixture().heldout == ["a.txt"]
    assert mixture(heldout=[]).heldout == []
    assert mixture(heldout=["b.txt"]).heldout == ["b.txt"]
    for epochs in (0.0, math.nan, math.inf):
        with pytest.raises(UserError, match=r"data\.epochs"):
            mixture(epochs)


@pytest.mark.parametrize(
    "options",
    [{"search": {"seed_everything": {"choices": [1, 2]}}}, {"set": {"seed_everything": 9}}],
)
def test_a_sweep_over_the_seed_is_refused(options):
    rates = {"search": {"model.init_args.lr": {"low": 1e-4, "high": 1e-3}}}
    with pytest.raises(UserError, match="seed_everything"):
        Sweep(
            study="s", base=["conf/nf.yaml"], objectives={"val/loss": "minimize"}, trials=2, **rates | options
        )


def test_pictures_have_points_and_shares_are_shares():
    with pytest.raises(UserError, match="points 0"):
        SchedulePicture(points=0)
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(UserError, match="max_bad_share"):
            TextDataModule(train=["a"], max_bad_share=share)
