"""The loss of the split model: each branch predicts the next row where that row is of its modality."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_moss.llm.layout import Layout
from lit_moss.llm.losses import HeadLoss, SplitLoss

if TYPE_CHECKING:
    from lit_moss.llm.model import SplitLM


def split_loss(
    lm: "SplitLM", h_BLD: Tensor, rows: Tensor, layout: Layout, kwargs: dict[str, Any]
) -> SplitLoss:
    """Cross-entropy of the next row, each head on its own targets.

    Args:
        lm: The model, with its branches, the weights of both modalities, and `keep_text`.
        h_BLD: Output of the trunk (B, L, D).
        rows: int64 (B, L).
        layout: Positions of the targets.
        kwargs: Arguments of the layers, see `LayerStack`.
    """
    losses: dict[str, HeadLoss] = {}
    targets = {"text": layout.text_N, "speech": layout.speech_N}  # positions in the flattened rows
    nll_BL = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
    text_BLD = None
    for branch in lm.branches:
        tail_BLD = None
        for modality in branch.predicts:
            at_N = targets[modality]
            # A branch without targets still runs where all ranks must do the same: in training, DDP needs
            # a gradient of every parameter on each rank; in validation, FSDP and ZeRO-3 gather the weights
            # that are called.
            keep = lm.keep_text and modality == "text"
            if not (lm.training or len(at_N) or keep or _sharded()):
                losses[modality] = _no_loss(h_BLD)
                continue
            if tail_BLD is None:
                tail_BLD = branch.block(h_BLD, **kwargs)
            text_BLD = tail_BLD if keep else text_BLD
            # Row i predicts row i + 1. The first row of a sequence is never a target, so `at_N - 1` stays
            # within the sequence.
            loss = branch.loss(tail_BLD.flatten(0, 1)[at_N - 1], rows.flatten()[at_N])
            if len(loss.nll_N):
                nll_BL.view(-1)[at_N] = loss.nll_N
            losses[modality] = loss
    text, speech = losses["text"], losses["speech"]
    texts, speeches = len(layout.text_N), len(layout.speech_N)
    weighted = lm.text_weight * text.nll + lm.speech_weight * speech.nll
    return SplitLoss(
        total=weighted / max(1, texts + speeches),
        text=text.nll.detach() / max(1, texts),
        speech=speech.nll.detach() / max(1, speeches),
        text_count=layout.text_N.new_full((), texts),
        speech_count=layout.speech_N.new_full((), speeches),
        text_correct=text.correct,
        speech_correct=speech.correct,
        nll_BL=nll_BL,
        text_BLD=text_BLD,
    )


def _sharded() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _no_loss(h: Tensor) -> HeadLoss:
    zero = torch.zeros((), dtype=torch.float32, device=h.device)
    return HeadLoss(zero, zero.new_empty(0), torch.zeros((), dtype=torch.long, device=h.device))
