"""Own decoder layers against transformers': forward to the bit, gradients to rounding, what is kept."""

import copy

import pytest
import torch
from backbones import backbone_of

from lit_moss.llm.attention import NAME, Segments
from lit_moss.llm.layers import DecoderLayer, own_layer
from lit_moss.llm.single_row import _product

KINDS = ("qwen3", "qwen2", "llama")


def pair(kind, **changes):
    """The same layer twice, transformers' and own, with rotations of 40 rows."""
    model = backbone_of(kind, **changes)
    model.config._attn_implementation = NAME
    theirs = model.model.layers[1]
    theirs.self_attn.config = model.config
    ours = own_layer(copy.deepcopy(theirs))
    assert isinstance(ours, DecoderLayer)
    rope = model.model.rotary_emb(torch.zeros(2, 40, 64), position_ids=torch.arange(40)[None])
    return theirs, ours, rope


def run(layer, h, rope, segments, autocast):
    h = h.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(h, position_embeddings=rope, attention_mask=None, segments=segments)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    grads = torch.autograd.grad((out.float() * weights).sum(), [h, *layer.parameters()])
    names = ["h", *(name for name, _ in layer.named_parameters())]
    return out, dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_to_the_bit_and_gradients_to_rounding(kind, packed, autocast):
    theirs, ours, rope = pair(kind)
    assert sorted(ours.state_dict()) == sorted(theirs.state_dict())
    h = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0] * 7 + [1] * 33, [0] * 40])
    segments = Segments.of(ids, "segments") if packed else None
    wanted, wanted_grads = run(theirs, h, rope, segments, autocast)
    found, grads = run(ours, h, rope, segments, autocast)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)
    near = 2e-2 if autocast else 1e-5
    for name, grad in wanted_grads.items():
        assert (grads[name] - grad).norm() <= near * grad.norm(), name


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_finite_differences(kind):
    """Norm, rotation, gate and packed attention in float64 where they allow it, else by a direction."""
    _, ours, rope = pair(kind)
    h = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0))
    segments = Segments.of(torch.tensor([[0] * 7 + [1] * 33, [0] * 40]), "segments")
    _, grads = run(ours, h, rope, segments, False)
    weights = torch.linspace(-1, 1, h.numel()).view_as(h).double()
    parameters = dict(ours.named_parameters())
    for name in ("h", "self_attn.q_proj.weight", "mlp.gate_proj.weight", "input_layernorm.weight"):
        value = h if name == "h" else parameters[name].data
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        direction /= direction.norm()
        sums = []
        for sign in (1, -1):
            value.add_(direction, alpha=sign * 1e-2)
            with torch.no_grad():
                out = ours(h, position_embeddings=rope, segments=segments)
            sums.append((out.double() * weights).sum())
            value.sub_(direction, alpha=sign * 1e-2)
        slope = float(sums[0] - sums[1]) / 2e-2
        assert slope == pytest.approx(float((grads[name] * direction).sum()), rel=2e-2, abs=1e-2), name


def test_frozen_weights_leave_no_half_precision_copy_and_get_the_same_gradient():
    _, ours, rope = pair("llama")
    h = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grads, kept = [], []
    for trains in (True, False):
        ours.requires_grad_(trains)
        sizes: list[tuple] = []

        def note(t, sizes=sizes):
            sizes.append(tuple(t.shape))
            return t

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            out = ours(h, position_embeddings=rope, segments=None)
        grads.append(torch.autograd.grad(out.float().square().sum(), h)[0])
        kept.append(sizes)
    assert torch.equal(*grads)
    matrices = {tuple(p.shape) for p in ours.parameters() if p.ndim == 2}
    assert not matrices & {s for s in kept[1] if len(s) == 2}


def test_a_layer_with_other_parts_stays_transformers_own():
    layer = backbone_of("llama").model.layers[0]
    layer.extra = torch.nn.Linear(2, 2)
    assert own_layer(layer) is layer
    with_gelu = backbone_of("llama", hidden_act="gelu").model.layers[0]
    assert own_layer(with_gelu) is with_gelu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_products_follow_weights_that_change(dtype):
    one, two = torch.nn.Linear(64, 96, bias=False).to(dtype), torch.nn.Linear(64, 32, dtype=dtype)
    x = torch.randn(1, 1, 64).to(dtype)
    with torch.no_grad():
        for _ in range(2):
            wanted = torch.cat([one(x), two(x)], dim=-1)
            torch.testing.assert_close(_product(x, one, two), wanted, rtol=2e-2, atol=2e-2)
            two.weight.mul_(-3.0)
            one.weight.data = torch.randn_like(one.weight)
