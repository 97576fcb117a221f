"""Steps that train the decoder's encoder alone."""

import copy

import pytest
import torch

from lit_moss.codec.flow import Flow
from lit_moss.codec.flow_config import FlowConfig
from lit_moss.codec.flow_training import FlowBatch, draw, prior_loss, velocities
from lit_moss.errors import UserError
from lit_moss.modules import FlowDecoder

SIZES = {
    "vocab_size": 16, "hidden": 16, "speaker_dim": 4, "encoder_heads": 2, "encoder_inner": 32,
    "encoder_layers": 1, "channels": 16, "heads": 2, "head_width": 8, "blocks": 1, "mid_stages": 1,
    "start": 0.8, "steps": 2, "predict": "mel", "normalise": "band", "dropout": 0.0,
}  # fmt: skip


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (3, 12), generator=generator)
    mel = torch.randn(3, 80, 48, generator=generator)
    return FlowBatch(codes, torch.tensor([12, 7, 10]), mel, torch.zeros(3, 4))


@pytest.mark.parametrize("streaming", [False, True])
def test_it_is_the_prior_loss_of_a_whole_step(streaming):
    flow = Flow(FlowConfig(**SIZES)).eval()
    own = batch()
    draws = draw(flow.config, own.mel_BMT, own.lengths_B * 4)
    whole = velocities(flow, own, draws, streaming)
    torch.testing.assert_close(prior_loss(flow, own, streaming), whole.prior_loss())


def test_the_velocity_network_gets_no_gradient():
    flow = Flow(FlowConfig(**SIZES)).train()
    before = copy.deepcopy(flow.state_dict())
    optimizer = torch.optim.SGD(flow.parameters(), 0.1)
    prior_loss(flow, batch()).backward()
    optimizer.step()
    changed = {name for name, value in flow.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("encoder.", "encoder_proj.", "input_embedding.")) for name in changed)


def test_without_a_weight_there_is_nothing_to_train():
    with pytest.raises(UserError, match=r"model\.prior_steps is 5 and model\.prior_weight 0"):
        FlowDecoder(FlowConfig(**SIZES | {"start": 0.0}), prior_steps=5)
