"""Causal attention on CPU, whose backward for short sequences is in float32.

torch 2.11's backward in bfloat16 is slow for short sequences. Milliseconds on one core of an Intel Xeon with
AMX, 9 heads of 64, float32 with its casts (`python -m experiments.benches.attention_backward`):

    rows       32    64   100   150   200   300   400   500  1000
    bfloat16  .83  1.86  3.42  5.09  4.80  6.65  9.65  13.6  33.1
    float32   .16   .44   .99  1.80  2.83  5.29  8.92  14.6  45.3

Packed rows of speech and text are such sequences, a document each. Gradients are nearer to the exact ones.

Shapes: B sequences, H heads, L rows, E width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SHORT_ROWS = 320  # at 400 rows either was faster in one of two runs
KERNEL: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
KERNEL_BACKWARD: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`F.scaled_dot_product_attention(q, k, v, is_causal=True)`, (B, H, L, E) each, on any device."""
    wants_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not wants_grad or q.shape[2] > _SHORT_ROWS:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _Causal.apply(q, k, v)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Output (B, H, L, E) and log-sum-exp (B, H, L) of SDPA's CPU kernel."""
    return KERNEL(q, k, v, 0.0, True, scale=scale)


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; in float32 where they were computed in it.

    Args:
        d_out: Gradient of the output, (B, H, L, E).
        q: Queries; keys and values are as many.
        k: Keys.
        v: Values.
        out: Output of `forward`.
        lse: Log-sum-exp of `forward`.
        scale: Factor on the scores; None: 1 / sqrt(E).
    """
    if q.dtype == torch.bfloat16 and q.shape[2] <= _SHORT_ROWS:
        d_out, q, k, v, out = (x.float() for x in (d_out, q, k, v, out))
    return KERNEL_BACKWARD(d_out, q, k, v, out, lse, 0.0, True, scale=scale)


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = forward(q, k, v)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors
        return tuple(grad.to(x.dtype) for grad, x in zip(backward(grads[0], *saved), saved[:3], strict=True))
