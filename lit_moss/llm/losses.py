"""Cross-entropy of a large head without its logits: computed, with its gradients, a chunk of rows at a time.

    logits = h W^T      nll = logsumexp(logits) - logits[target]      d nll / d logits = softmax - onehot

At 151,680 words and 14,336 rows full logits are 8.7 GB in float32, and as much again for their gradient. Here
one chunk of them exists at a time. The gradient of the hidden rows is computed in the same pass, so the
backward multiplies by one number. A frozen head gets no weight gradient at all.
Shapes: B sequences, L rows, N target rows, D width, V ids of the head.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Logits at once: 32 MiB in float32 on CPU; a GPU reads the head once a chunk and wants longer ones.
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**25}


class HeadLoss(NamedTuple):
    """Loss of one head over its own targets. A tuple, because ZeRO-3's hooks find tensors in nothing else.

    Args:
        nll: Sum of -log p over the targets, in nats, differentiable.
        nll_N: The same for each row, without gradient.
        correct: Targets that were the head's first choice.
    """

    nll: Tensor
    nll_N: Tensor
    correct: Tensor


@dataclass
class SplitOutput:
    """Logits of the next row.

    Args:
        text_logits: (B, L, V_text).
        speech_logits: (B, L, V_audio).
    """

    text_logits: Tensor
    speech_logits: Tensor


@dataclass
class SplitLoss:
    """Loss of a batch and its parts; every target counts once unless the weights say otherwise.

    Args:
        total: (w_text x sum over text targets + w_speech x sum over speech targets) / number of targets; ()
            float32.
        text: Mean over the text targets in nats, 0 where there are none; ().
        speech: The same for the speech targets.
        text_count: Text targets, int64 ().
        speech_count: Speech targets, int64 ().
        text_correct: Text targets that were the head's first choice, int64 ().
        speech_correct: The same for the speech targets.
        nll_BL: -log p of every target row, at the row itself, 0 elsewhere; no gradient; (B, L).
        hidden_BLD: Hidden states of the trunk, differentiable, where `SplitLM.keep_hidden` asks for them;
            (B, L, D).
    """

    total: Tensor
    text: Tensor
    speech: Tensor
    text_count: Tensor
    speech_count: Tensor
    text_correct: Tensor
    speech_correct: Tensor
    nll_BL: Tensor
    hidden_BLD: Tensor | None = None


class Head(nn.Linear):
    """Projection to logits that can also return its loss, so that sharded strategies gather it once."""

    def forward(self, hidden: Tensor, targets_N: Tensor | None = None) -> Any:
        """Logits (…, V) of hidden (…, D); with targets the `HeadLoss` of hidden (N, D)."""
        if targets_N is None:
            return super().forward(hidden)
        return head_loss(hidden, self.weight, targets_N)


def head_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> HeadLoss:
    """Cross-entropy of hidden (N, D) against a head (V, D); the arithmetic follows autocast."""
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    nll, nll_N, correct = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N)
    return HeadLoss(nll, nll_N, correct)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        (N, D), V = hidden_ND.shape, len(weight_VD)
        step = max(1, CHUNK_ELEMENTS.get(hidden_ND.device.type, 2**25) // V)
        nll_N = torch.empty(N, dtype=torch.float32, device=hidden_ND.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden_ND.device)
        d_hidden = torch.empty_like(hidden_ND) if want_hidden else None
        d_weight = torch.zeros(V, D, dtype=torch.float32, device=hidden_ND.device) if want_weight else None
        for start in range(0, N, step):
            h, targets = hidden_ND[start : start + step], targets_N[start : start + step, None]
            logits = (h @ weight_VD.T).float()
            at_target = logits.gather(1, targets)
            lse = logits.logsumexp(1, keepdim=True)
            nll_N[start : start + step] = (lse - at_target)[:, 0]
            correct += (logits.argmax(1, keepdim=True) == targets).sum()
            if not (want_hidden or want_weight):
                continue
            # d nll / d logits = softmax - onehot
            grad = logits.sub_(lse).exp_()
            grad.scatter_add_(1, targets, torch.full_like(at_target, -1.0))
            grad = grad.to(h.dtype)
            if d_hidden is not None:
                d_hidden[start : start + step] = grad @ weight_VD
            if d_weight is not None and h.dtype == torch.float32:
                d_weight.addmm_(grad.T, h)  # without a second (V, D)
            elif d_weight is not None:
                d_weight += grad.T @ h
        ctx.save_for_backward(*(x for x in (d_hidden, d_weight) if x is not None))
        ctx.wanted, ctx.dtype = (want_hidden, want_weight), weight_VD.dtype
        ctx.mark_non_differentiable(nll_N, correct)
        return nll_N.sum(), nll_N, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        d_hidden = next(saved) if ctx.wanted[0] else None
        d_weight = next(saved) if ctx.wanted[1] else None
        factor = grads[0]
        return (
            # In place, because a copy would be as large as the head: one backward per forward.
            None if d_hidden is None else d_hidden.mul_(factor),
            None if d_weight is None else d_weight.mul_(factor).to(ctx.dtype),
            None,
        )
