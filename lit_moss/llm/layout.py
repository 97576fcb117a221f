"""Document borders and positions of targets in a batch.

Shapes: B sequences, L rows, N targets of a modality.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lit_moss.llm.attention import starts


@dataclass(frozen=True)
class Layout:
    """Document borders and positions of targets.

    Computing them takes one transfer from the rows' device to the host, before the first layer; a training
    step has no other transfer.

    Args:
        borders: Per sequence: the start of each document, then the sequence length, as in `Segments`. None:
            one document per sequence.
        longest: Number of rows of the longest document, without filler.
        text_N: Positions of text targets in the flattened rows, int64 (N,), on the device of the rows.
        speech_N: Positions of speech targets, as in `text_N`.
    """

    borders: list[list[int]] | None
    longest: int
    text_N: Tensor
    speech_N: Tensor

    @classmethod
    def of(
        cls, rows: Tensor, V: int, document_ids: Tensor | None, loss_mask: Tensor | None, with_loss: bool
    ) -> "Layout":
        """Computes the layout; arguments as in `SplitLM.forward`, V is the number of text ids."""
        none = torch.empty(0, dtype=torch.long, device=rows.device)
        if document_ids is None and not with_loss:
            return cls(None, rows.shape[1], none, none)
        flags_BL = torch.zeros_like(rows, dtype=torch.uint8)
        if document_ids is not None:
            flags_BL += starts(document_ids) + 2 * (document_ids < 0).byte()
        if with_loss:
            flags_BL += targets(rows, document_ids, loss_mask) * torch.where(rows < V, 4, 8).byte()
        flags_BL = flags_BL.cpu()
        borders, longest = None, rows.shape[1]
        if document_ids is not None:
            L = rows.shape[1]
            borders = [[*starts_L.nonzero()[:, 0].tolist(), L] for starts_L in flags_BL & 1]
            filler_BL = (flags_BL & 2).bool()
            sizes = [
                stop - start
                for b, row in enumerate(borders)
                for start, stop in pairwise(row)
                if not filler_BL[b, start]
            ]
            longest = max(sizes, default=0)
        if not with_loss:
            return cls(borders, longest, none, none)
        text_N, speech_N = (
            (flags_BL & flag).flatten().nonzero()[:, 0].to(rows.device, non_blocking=True) for flag in (4, 8)
        )
        return cls(borders, longest, text_N, speech_N)


def targets(rows: Tensor, document_ids: Tensor | None = None, loss_mask: Tensor | None = None) -> Tensor:
    """bool (B, L): rows predicted from the row before: same document, and True in the mask."""
    target = torch.ones_like(rows, dtype=torch.bool)
    target[:, 0] = False
    if document_ids is not None:
        target[:, 1:] &= document_ids[:, 1:] == document_ids[:, :-1]
        target &= document_ids >= 0
    if loss_mask is not None:
        target &= loss_mask.bool()
    return target
