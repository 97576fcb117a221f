"""Distillation of text from the unmodified backbone, so that learning speech does not degrade text.

    rows      t_1 t_2 t_3 eos | t_1 t_2 sosp c_1 c_2 … | q_1 q_2 a_1 a_2 …
    text      t_1 t_2 t_3 eos   t_1 t_2                  q_1 q_2        text before the first speech or reply
    teacher   the unmodified backbone, on these rows only
    loss      sum of KL(p_backbone(· | t_1 … t_i) || p_model(· | t_1 … t_i)) over rows with a next row

Replies (targets that follow non-target rows) are excluded: they may differ from the backbone's.

A target of replayed text supports a single id and narrows the model towards the replayed data, whereas the
backbone's distribution gives the probability of every id (Hinton et al. 2015, arXiv:1503.02531; Li and Hoiem
2016, arXiv:1606.09282).
Shapes: B sequences, L rows, D width, R rows of text, N of them with a next row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_moss.data.batches import TokenBatch
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.attention import starts
from lit_moss.llm.losses import divergence
from lit_moss.llm.rows import RowFormat
from lit_moss.modules.teacher import FrozenText


@dataclass(frozen=True)
class TextDistill:
    """Options of the distillation of text from the unmodified backbone.

    Args:
        weight: Weight relative to the cross-entropy; both are in nats per target.
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
    """Selects the rows of each document before its first sosp or code and before its first reply.

    A reply begins at a target that follows a non-target row; the first row of a document, which is never a
    target, does not count as one. In a document that was cut to fit the context, only the remaining rows are
    considered, since the model sees no others.

    Args:
        rows_BL: Packed rows (B, L).
        document_ids_BL: Document numbers (B, L), negative for filler.
        loss_mask_BL: bool (B, L), True for targets.
        row_format: Row format, which distinguishes text rows from speech rows.

    Returns:
        Indices into the flattened (B L) rows, (R,), and the document number of each, (R,).
    """
    new_N = starts(document_ids_BL).flatten()

    def earlier(what_N: Tensor) -> Tensor:
        """For each row, counts the earlier rows of its document for which `what_N` is true."""
        sum_N = what_N.cumsum(0) - what_N.long()
        return sum_N - torch.where(new_N, sum_N, 0).cummax(0).values  # the cumulative sum never decreases

    rows_N, target_N = rows_BL.flatten(), loss_mask_BL.flatten().bool()
    speech_N = (rows_N >= row_format.text_vocab_size) | (rows_N == row_format.sosp_token_id)
    stop_N = speech_N | (target_N & (earlier(~target_N & ~new_N) > 0))
    text_N = ~stop_N & (earlier(stop_N) == 0) & (document_ids_BL.flatten() >= 0)
    at_R = text_N.nonzero()[:, 0]
    return at_R, new_N.cumsum(0)[at_R]


@dataclass
class DistillLoss:
    """Distillation loss of a batch.

    Args:
        nats: Sum of the divergences in nats, differentiable; ().
        rows: Number of rows in the sum.
    """

    nats: Tensor
    rows: int


class TextDistiller:
    """Computes distillation losses against a teacher.

    The teacher is not a submodule: checkpoints, optimizers and reducers do not include it, and it is created
    from the backbone again when a run is resumed.

    The host waits for the device once per batch, to find out how many rows are text.

    Args:
        option: Options of the loss.
        teacher: The frozen text path, with its head.
    """

    def __init__(self, option: TextDistill, teacher: FrozenText) -> None:
        self.option, self.teacher = option, teacher

    def __call__(self, lm: SplitLM, batch: TokenBatch, text_BLD: Tensor) -> DistillLoss:
        """Distillation loss of a batch.

        Args:
            lm: The student.
            batch: Packed rows.
            text_BLD: The student's outputs of the text tail (B, L, D), before the norm.
        """
        rows_BL, document_ids_BL, loss_mask_BL = (
            x.to(text_BLD.device) for x in (batch.rows_BL, batch.document_ids_BL, batch.loss_mask_BL)
        )
        at_R, documents_R = kept_text(rows_BL, document_ids_BL, loss_mask_BL, lm.format)
        pairs_N = (documents_R[1:] == documents_R[:-1]).nonzero()[:, 0]
        if not len(pairs_N):
            return DistillLoss(text_BLD.float().sum() * 0.0, 0)  # each rank needs a gradient
        self.teacher.to(text_BLD.device)
        assert self.teacher.head is not None, "a copy of all layers"
        with torch.no_grad():
            teacher_RD = self.teacher.norm(self.teacher(rows_BL.flatten()[at_R][None], documents_R[None])[0])
        text = lm.branch_of("text")
        student_ND = text.norm(text_BLD.flatten(0, 1)[at_R[pairs_N]])
        nats = divergence(student_ND, text.head.weight, teacher_RD[pairs_N], self.teacher.head.weight)
        return DistillLoss(nats, len(pairs_N))


class DistillTotals:
    """Mean over the text rows of all validation batches."""

    def __init__(self) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64)

    def add(self, loss: DistillLoss) -> None:
        """Adds the loss of a batch."""
        nats = loss.nats.detach().double()
        self._sums = self._sums.to(nats.device) + torch.stack([nats, torch.full_like(nats, loss.rows)])

    def metrics(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`distill`, in nats per row; empty if there are no rows.

        Args:
            over_ranks: Returns the sum of a tensor over all ranks.
        """
        nats, rows = over_ranks(self._sums.clone()).tolist()
        return {"distill": nats / rows} if rows else {}
