"""Biases whose matrix is frozen got no gradient under autocast, and stayed as they were without a message."""

import pytest
import torch

from lit_moss.llm.layers import Linear


@pytest.mark.parametrize("trains", ["bias", "weight", "both", "neither"])
def test_gradients_are_those_of_torch(trains):
    torch.manual_seed(0)
    ours, theirs = Linear(8, 4), torch.nn.Linear(8, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 8)
    found = []
    for layer in (ours, theirs):
        layer.weight.requires_grad_(trains in ("weight", "both"))
        layer.bias.requires_grad_(trains in ("bias", "both"))
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(own)
        out.float().square().sum().backward()
        found.append((out, own.grad, layer.weight.grad, layer.bias.grad))
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.02)
