"""Gradients are clipped by norm and by value where AdamW is fused, as on CUDA: Lightning's mixed precision
refuses both, though bfloat16 has no scaler."""

import pytest
import torch
import yaml
from lm_recipe import lm_recipe
from recording import checkpoints, fit

from lit_moss.modules.steps import StepModule


@pytest.mark.nightly
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_step_is_the_plain_one(tmp_path, algorithm, monkeypatch):
    states = {}
    for fused in (False, True):
        monkeypatch.setattr(
            StepModule,
            "adamw",
            lambda _, groups, fused=fused, **o: torch.optim.AdamW(groups, fused=fused, **o),
        )
        folder = tmp_path / str(fused)
        path = lm_recipe(folder, 5)
        config = yaml.safe_load(path.read_text())
        changes = {"precision": "bf16-mixed", "gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
        config["trainer"] |= changes
        path.write_text(yaml.safe_dump(config))
        fit(folder, path)
        states[fused] = checkpoints(folder)["step-0000005.ckpt"]["state_dict"]
    for name, value in states[False].items():
        torch.testing.assert_close(states[True][name], value, rtol=1e-3, atol=1e-4)
