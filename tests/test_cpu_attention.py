"""Attention on CPU: the output of torch's own kernel, gradients at least as near to the exact ones."""

import pytest
import torch
import torch.nn.functional as F

from lit_moss.cpu_attention import causal_attention


def gradients(of, inputs, d_out):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = of(*leaves)
    out.backward(d_out.to(out.dtype))
    return out.detach(), [x.grad for x in leaves]


def plain(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("rows", [1, 33, 150, 450])  # 450 is beyond what is computed in float32
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_are_as_exact_as_those_of_torch(rows, dtype):
    torch.manual_seed(rows)
    inputs = [torch.randn(2, 3, rows, 64).to(dtype) for _ in range(3)]
    d_out = torch.randn(2, 3, rows, 64).to(dtype)
    out, ours = gradients(causal_attention, inputs, d_out)
    their_out, theirs = gradients(plain, inputs, d_out)
    _, exact = gradients(plain, [x.double() for x in inputs], d_out.double())
    assert torch.equal(out, their_out)
    for own, other, truth in zip(ours, theirs, exact, strict=True):
        assert own.dtype == dtype
        errors = [(grad.double() - truth).norm() / truth.norm().clamp(min=1e-30) for grad in (own, other)]
        if rows == 1:  # queries and keys have none: softmax of one score is 1
            continue
        assert errors[0] <= errors[1] * 1.05
        assert errors[0] < (0.01 if dtype == torch.bfloat16 else 1e-5)


def test_without_gradients_torch_is_called():
    q, k, v = (torch.randn(1, 2, 20, 16).bfloat16() for _ in range(3))
    assert torch.equal(causal_attention(q, k, v), plain(q, k, v))
