"""Distillation of text from the backbone as it was, so that learning speech does not cost text.

    rows      t_1 t_2 t_3 eos | t_1 t_2 sosp c_1 c_2 … | q_1 q_2 a_1 a_2 …
    text      t_1 t_2 t_3 eos   t_1 t_2                  q_1 q_2        before the first speech or reply
    teacher   the backbone as it was, on these rows alone
    loss      sum of KL(p_backbone(· | t_1 … t_i) || p_model(· | t_1 … t_i)) over rows that another follows

A reply, that is what is learnt after a prompt that is not, may become another than the backbone's.

A target of replayed text teaches one id and narrows the model to the replay; the backbone's distribution says
of every id how likely it was (Hinton et al. 2015, arXiv:1503.02531; Li and Hoiem 2016, arXiv:1606.09282).
Shapes: B sequences, L rows, D width, R rows of text, N of them with a next one.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_moss.data.batches import TokenBatch
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.attention import Segments, starts
from lit_moss.llm.branches import Block, Rotary
from lit_moss.llm.losses import divergence
from lit_moss.llm.rows import RowFormat


@dataclass(frozen=True)
class TextDistill:
    """Distillation of text from the backbone as it was.

    Args:
        weight: Weight beside the cross-entropy; both are nats a target.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(
                f"model.distill.weight is {self.weight}, expected above 0 (distill: null turns it off)"
            )


def kept_text(
    rows_BL: Tensor, document_ids_BL: Tensor, loss_mask_BL: Tensor, row_format: RowFormat
) -> tuple[Tensor, Tensor]:
    """Rows of each document before its first sosp or code, and before its first reply.

    A reply begins at a target after a row that is none; a document's first row is no target in any case. A
    document that was cut to fit the context counts by what it has there: that is all the model sees.

    Args:
        rows_BL: Packed rows.
        document_ids_BL: Their documents, negative for filler.
        loss_mask_BL: Which rows are targets.
        row_format: Which rows are text.

    Returns:
        Places in the flattened (B L) rows (R,), and the number of the document of each (R,).
    """
    new_N = starts(document_ids_BL).flatten()

    def earlier(what_N: Tensor) -> Tensor:
        """How many of the document's earlier rows are it."""
        sum_N = what_N.cumsum(0) - what_N.long()
        return sum_N - torch.where(new_N, sum_N, 0).cummax(0).values  # the sum never falls

    rows_N, target_N = rows_BL.flatten(), loss_mask_BL.flatten().bool()
    speech_N = (rows_N >= row_format.text_vocab_size) | (rows_N == row_format.sosp_token_id)
    stop_N = speech_N | (target_N & (earlier(~target_N & ~new_N) > 0))
    text_N = ~stop_N & (earlier(stop_N) == 0) & (document_ids_BL.flatten() >= 0)
    at_R = text_N.nonzero()[:, 0]
    return at_R, new_N.cumsum(0)[at_R]


class TextTeacher(nn.Module):
    """The backbone's text path as it was, frozen.

    Args:
        lm: A split model with the backbone's weights.
        dtype: Of its weights.
    """

    def __init__(self, lm: SplitLM, dtype: torch.dtype) -> None:
        super().__init__()
        text = lm.branch_of("text")
        self.embed_tokens = copy.deepcopy(lm.model.embed_tokens)
        self.block = Block([copy.deepcopy(layer) for layer in [*lm.trunk.layers, *text.block.layers]])
        self.rotary = Rotary(copy.deepcopy(lm.rotary.inner))
        self.norm = copy.deepcopy(text.norm)
        self.head = copy.deepcopy(text.head)
        self.to(dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, rows_1R: Tensor, document_ids_1R: Tensor) -> Tensor:
        """Text rows (1, R) of documents -> states before the head (1, R, D)."""
        h = self.embed_tokens(rows_1R)
        kind = h.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h.dtype
        segments = Segments.of(document_ids_1R, "auto", half)
        h = self.block(h, rope=self.rotary(h, position_ids=segments.positions_BL), segments=segments)
        return self.norm(h)


@dataclass
class DistillLoss:
    """Loss of a batch.

    Args:
        nats: Sum of the divergences, differentiable; ().
        rows: Their number.
    """

    nats: Tensor
    rows: int


class TextDistiller:
    """Losses of batches against a teacher, which belongs to no module: it has no part in checkpoints,
    optimizers and reducers, and is made from the backbone again.

    The host waits for the device once a batch, to know how many rows are text.

    Args:
        option: Weight.
        teacher: The frozen text path.
    """

    def __init__(self, option: TextDistill, teacher: TextTeacher) -> None:
        self.option, self.teacher = option, teacher

    def __call__(self, lm: SplitLM, batch: TokenBatch, text_BLD: Tensor) -> DistillLoss:
        """Loss of a batch.

        Args:
            lm: The student.
            batch: Packed rows.
            text_BLD: Its outputs of the text tail, before the norm.
        """
        rows_BL, document_ids_BL, loss_mask_BL = (
            x.to(text_BLD.device) for x in (batch.rows_BL, batch.document_ids_BL, batch.loss_mask_BL)
        )
        at_R, documents_R = kept_text(rows_BL, document_ids_BL, loss_mask_BL, lm.format)
        pairs_N = (documents_R[1:] == documents_R[:-1]).nonzero()[:, 0]
        if not len(pairs_N):
            return DistillLoss(text_BLD.float().sum() * 0.0, 0)  # each rank needs a gradient
        self.teacher.to(text_BLD.device)
        teacher_RD = self.teacher(rows_BL.flatten()[at_R][None], documents_R[None])[0]
        text = lm.branch_of("text")
        student_ND = text.norm(text_BLD.flatten(0, 1)[at_R[pairs_N]])
        nats = divergence(student_ND, text.head.weight, teacher_RD[pairs_N], self.teacher.head.weight)
        return DistillLoss(nats, len(pairs_N))


class DistillTotals:
    """Mean over the rows of a validation's batches."""

    def __init__(self) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64)

    def add(self, loss: DistillLoss) -> None:
        """Counts a batch."""
        nats = loss.nats.detach().double()
        self._sums = self._sums.to(nats.device) + torch.stack([nats, torch.full_like(nats, loss.rows)])

    def metrics(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`distill`, nats a row; without a row none.

        Args:
            over_ranks: Sum of a tensor over all ranks.
        """
        nats, rows = over_ranks(self._sums.clone()).tolist()
        return {"distill": nats / rows} if rows else {}
