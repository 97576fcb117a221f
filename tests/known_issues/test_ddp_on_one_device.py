"""With DDP on one device the second step failed where parts train later: the reducer waited for gradients.

`-c conf/trainer/gpu.yaml` on a machine with one GPU is such a run.
"""

import pytest
import torch
from decoders import decoder_recipe, made_up_codec
from lm_recipe import lm_recipe
from recording import checkpoints, fit_in_process
from vocoders import vocoder_recipe

pytestmark = pytest.mark.nightly
DDP = {"trainer__devices": 1, "trainer__strategy": "ddp"}


def test_stages_train_as_without_it(tmp_path):
    stages = [{"policy": "stage1", "until_step": 6}, {"policy": "full"}]
    states = []
    for strategy in ("auto", "ddp"):
        path = lm_recipe(tmp_path / strategy, 10, stages=stages)
        done = fit_in_process(tmp_path / strategy, path, "--trainer.strategy", strategy)
        assert done.returncode == 0, done.stderr[-2000:]
        states.append(checkpoints(tmp_path / strategy)["step-0000010.ckpt"]["state_dict"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_discriminators_that_wait(tmp_path, corpus):
    done = fit_in_process(tmp_path, vocoder_recipe(tmp_path, corpus, 6, 4, **DDP))
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_velocity_network_that_waits(tmp_path, corpus):
    path = decoder_recipe(tmp_path, corpus, made_up_codec(tmp_path / "codec"), 6, **DDP)
    done = fit_in_process(tmp_path, path, "--model.init_args.prior_weight", "1.0",
                          "--model.init_args.prior_steps", "4")  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
