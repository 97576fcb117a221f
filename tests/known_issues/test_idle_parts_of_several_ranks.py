"""Parts that wait for their step got gradients of zero on several ranks: AdamW let them decay and counted.

After 10,000 such steps at a rate of 1e-3 and a decay of .01 a weight is 0.905 of itself, and the first real
step is twice as long. On one rank nothing happened.
"""

import pytest
import torch
from decoders import decoder_recipe, made_up_codec
from recording import checkpoints, fit_in_process
from vocoders import vocoder_recipe

RANKS = {"trainer__devices": 2, "trainer__strategy": "ddp"}


def states_and_moments(folder):
    saved = checkpoints(folder)
    state = [saved[f"step-{n:07d}.ckpt"] for n in (5, 10)]
    models = [s.get("current_model_state") or s["state_dict"] for s in state]
    return *models, state[1]["optimizer_states"][0]


@pytest.mark.nightly
def test_discriminators_stay_as_they_were_until_their_step(tmp_path, corpus):
    done = fit_in_process(tmp_path, vocoder_recipe(tmp_path, corpus, 10, 12, **RANKS))
    assert done.returncode == 0, done.stderr[-2000:]
    early, late, moments = states_and_moments(tmp_path)
    moved = {name.split(".")[0] for name in early if not torch.equal(early[name], late[name])}
    assert moved == {"net"}
    own = next(g["params"] for g in moments["param_groups"] if g["name"] == "discriminator")
    assert not set(own) & set(moments["state"])


@pytest.mark.nightly
def test_the_velocity_network_stays_as_it_was_until_its_step(tmp_path, corpus):
    path = decoder_recipe(tmp_path, corpus, made_up_codec(tmp_path / "codec"), 10, **RANKS)
    done = fit_in_process(tmp_path, path, "--model.init_args.prior_weight", "1.0",
                          "--model.init_args.prior_steps", "12")  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    early, late, _ = states_and_moments(tmp_path)
    moved = {name for name in early if not torch.equal(early[name], late[name])}
    assert "flow.encoder_proj.weight" in moved
    assert not [name for name in moved if name.startswith(("flow.decoder.", "flow.spk_embed"))]
