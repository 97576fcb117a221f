"""Cross-entropy of a large head without full logits: losses and gradients are computed per chunk of rows.

    logits = h W^T      nll = logsumexp(logits) - logits[target]      d nll / d logits = softmax - onehot

With 151,680 words and 14,336 rows, full logits take 8.7 GB in float32, and their gradient the same again.
Here only one chunk of them exists at a time. The gradient of the hidden states is computed in the same pass,
so the backward only multiplies it by a scalar. For a frozen head no weight gradient is computed. The KL
divergence from another head's distribution is computed in the same way.
Shapes: B sequences, L rows, N target rows, D width, V ids of the head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_moss.devices import autocast_dtype

# Logits per chunk: 32 MiB in float32 on CPU; a GPU reads the head once per chunk and benefits from larger
# ones.
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**25}


class HeadLoss(NamedTuple):
    """Loss of one head over its own targets. A NamedTuple, because ZeRO-3's hooks only traverse tuples.

    Args:
        nll: Sum of -log p over the targets, in nats, differentiable; float32 ().
        nll_N: -log p of each target row, in nats, without gradient; float32 (N,).
        correct: Number of targets to which the head gives the highest probability; int64 ().
    """

    nll: Tensor
    nll_N: Tensor
    correct: Tensor


@dataclass
class SplitOutput:
    """Logits of the next row.

    Args:
        text_logits: (B, L, V_text), in the data type of the head's output.
        speech_logits: (B, L, V_audio), in the data type of the head's output.
    """

    text_logits: Tensor
    speech_logits: Tensor


@dataclass
class SplitLoss:
    """Loss of a batch and its parts. Every target counts equally unless the weights say otherwise.

    Args:
        total: (w_text x sum over text targets + w_speech x sum over speech targets) / number of targets; ()
            float32.
        text: Mean over the text targets, in nats, 0 if there are none; float32 ().
        speech: Mean over the speech targets, in nats, 0 if there are none; float32 ().
        text_count: Number of text targets, int64 ().
        speech_count: Number of speech targets, int64 ().
        text_correct: Number of text targets to which the head gives the highest probability, int64 ().
        speech_correct: Number of speech targets to which the head gives the highest probability, int64 ().
        nll_BL: -log p of every target row, stored at that row, 0 elsewhere; no gradient; (B, L).
        hidden_BLD: Hidden states of the trunk, differentiable, (B, L, D); None unless `SplitLM.keep_hidden`
            is set.
        text_BLD: Outputs of the text tail before the norm, differentiable, (B, L, D); None unless
            `SplitLM.keep_text` is set.
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
    text_BLD: Tensor | None = None


class Head(nn.Linear):
    """Projection to logits; can also compute the loss, so that sharded strategies gather its weight once."""

    def forward(self, hidden: Tensor, targets_N: Tensor | None = None) -> Any:
        """Logits (…, V) of hidden states (…, D); or with targets (N,), the `HeadLoss` of (N, D)."""
        if targets_N is None:
            return super().forward(hidden)
        return head_loss(hidden, self.weight, targets_N)


def head_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> HeadLoss:
    """Cross-entropy of hidden states (N, D) with a head (V, D), in autocast's dtype if enabled."""
    nll, nll_N, correct = _ChunkedCrossEntropy.apply(*_in_autocast(hidden_ND, weight_VD), targets_N)
    return HeadLoss(nll, nll_N, correct)


def divergence(hidden_ND: Tensor, weight_VD: Tensor, teacher_ND: Tensor, teacher_VD: Tensor) -> Tensor:
    """Sum over rows of KL(p_teacher || p), in nats, float32 (); differentiable in the first two arguments.

    Args:
        hidden_ND: Input of the head (N, D).
        weight_VD: Weight of the head (V, D).
        teacher_ND: Input of the teacher's head, (N, width of the teacher).
        teacher_VD: Weight of the teacher's head, with the same number of ids.
    """
    return _ChunkedDivergence.apply(*_in_autocast(hidden_ND, weight_VD, teacher_ND, teacher_VD))


def _in_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = autocast_dtype(tensors[0].device)
    return tensors if dtype is None else tuple(x.to(dtype) for x in tensors)


class _Gradients:
    """Gradients of a head and of its input rows, computed per chunk of rows in the forward."""

    def __init__(self, ctx: Any, hidden_ND: Tensor, weight_VD: Tensor) -> None:
        self.hidden_ND, self.weight_VD = hidden_ND, weight_VD
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        self.wanted = want_hidden, want_weight
        V, D = weight_VD.shape
        self.step = max(1, CHUNK_ELEMENTS.get(hidden_ND.device.type, 2**25) // V)
        self.d_hidden = torch.empty_like(hidden_ND) if want_hidden else None
        self.d_weight = (
            torch.zeros(V, D, dtype=torch.float32, device=hidden_ND.device) if want_weight else None
        )

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields the slice of each chunk of rows, and its logits in float32."""
        for start in range(0, len(self.hidden_ND), self.step):
            at = slice(start, start + self.step)
            yield at, (self.hidden_ND[at] @ self.weight_VD.T).float()

    def add(self, at: slice, grad_NV: Tensor) -> None:
        """Accumulates the gradient of a chunk's logits."""
        h = self.hidden_ND[at]
        grad_NV = grad_NV.to(h.dtype)
        if self.d_hidden is not None:
            self.d_hidden[at] = grad_NV @ self.weight_VD
        if self.d_weight is not None and h.dtype == torch.float32:
            self.d_weight.addmm_(grad_NV.T, h)  # avoids a second (V, D) tensor
        elif self.d_weight is not None:
            self.d_weight += grad_NV.T @ h

    def save(self, ctx: Any) -> None:
        """Saves the gradients for the backward."""
        ctx.save_for_backward(*(x for x in (self.d_hidden, self.d_weight) if x is not None))
        ctx.wanted, ctx.dtype = self.wanted, self.weight_VD.dtype

    @staticmethod
    def times(ctx: Any, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The saved gradients of the rows and of the head, multiplied by a scalar."""
        saved = iter(ctx.saved_tensors)
        d_hidden = next(saved) if ctx.wanted[0] else None
        d_weight = next(saved) if ctx.wanted[1] else None
        return (
            # In place, because a copy would be as large as the head. This allows one backward per forward.
            None if d_hidden is None else d_hidden.mul_(factor),
            None if d_weight is None else d_weight.mul_(factor).to(ctx.dtype),
        )


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
        gradients = _Gradients(ctx, hidden_ND, weight_VD)
        nll_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden_ND.device)
        for at, logits in gradients.chunks():
            targets = targets_N[at, None]
            at_target = logits.gather(1, targets)
            lse = logits.logsumexp(1, keepdim=True)
            nll_N[at] = (lse - at_target)[:, 0]
            correct += (logits.argmax(1, keepdim=True) == targets).sum()
            if not any(gradients.wanted):
                continue
            # d nll / d logits = softmax - onehot
            grad = logits.sub_(lse).exp_()
            grad.scatter_add_(1, targets, torch.full_like(at_target, -1.0))
            gradients.add(at, grad)
        gradients.save(ctx)
        ctx.mark_non_differentiable(nll_N, correct)
        return nll_N.sum(), nll_N, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_Gradients.times(ctx, grads[0]), None


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, teacher_ND: Tensor, teacher_VD: Tensor
    ) -> Tensor:
        gradients = _Gradients(ctx, hidden_ND, weight_VD)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for at, logits in gradients.chunks():
            log_p = logits.log_softmax(1)
            log_q = (teacher_ND[at] @ teacher_VD.T).float().log_softmax(1)
            q = log_q.exp()
            total += (q * (log_q - log_p)).sum()
            if any(gradients.wanted):
                gradients.add(at, log_p.exp_().sub_(q))  # d KL / d logits = p - q
        gradients.save(ctx)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_Gradients.times(ctx, grads[0]), None, None
