"""Log-probabilities of given rows given the preceding rows, for many sequences at once.

Sequences are packed into a single one, without padding. Whatever the precision of the layers,
log-probabilities are computed from logits in float32, outside of autocast: in bfloat16 different
continuations often get the same score. Shapes: L rows of a pack, D width, N wanted rows, V ids of a head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_moss.llm import SplitLM
from lit_moss.llm.attention import Segments
from lit_moss.llm.branches import Branch, Modality
from lit_moss.llm.losses import CHUNK_ELEMENTS

PACK_ROWS = 4096
Wanted = Sequence[tuple[int, int]]  # index in the sequence, and the row whose probability there is wanted


@dataclass
class RowScores:
    """Scores of the wanted rows of a sequence, in order.

    Args:
        log_probs: Natural log-probability of each row.
        greedy: Whether each row is the most likely one.
    """

    log_probs: list[float] = field(default_factory=list)
    greedy: list[bool] = field(default_factory=list)


@torch.no_grad()
def score_rows(
    lm: SplitLM,
    sequences: Sequence[Sequence[int]],
    wanted: Sequence[Wanted],
    allowed: Mapping[Modality, Tensor] | None = None,
    pack_rows: int = PACK_ROWS,
) -> list[RowScores]:
    """log p(row | the `place` rows before it) for the wanted rows of each sequence.

    The head is that of the wanted row's modality.

    Args:
        lm: The model, in eval mode.
        sequences: Rows of each sequence.
        wanted: For each sequence (place, row) pairs, with 1 <= place <= its length.
        allowed: Modality -> bool (V,), ids of its head included in the softmax; all ids if a modality is
            missing.
        pack_rows: Number of rows to compute at once; a longer sequence is computed alone.

    Raises:
        UserError: if a sequence has more rows than the backbone has positions for.
    """
    scores = [RowScores([0.0] * len(rows), [False] * len(rows)) for rows in wanted]
    device = lm.text_lm_head.weight.device
    for pack in packs([len(rows) for rows in sequences], pack_rows):
        flat = [row for s in pack for row in sequences[s]]
        lengths = torch.tensor([len(sequences[s]) for s in pack])
        lm.check_context(int(lengths.max()))
        ids_L = torch.repeat_interleave(torch.arange(len(pack)), lengths)
        starts = dict(zip(pack, (lengths.cumsum(0) - lengths).tolist(), strict=True))
        asked = [(s, n, starts[s] + place - 1, row) for s in pack for n, (place, row) in enumerate(wanted[s])]
        with torch.autocast(device.type, enabled=False):
            hidden = _Hidden(lm, torch.tensor(flat, device=device)[None], ids_L[None].to(device))
            for modality in ("text", "speech"):
                is_speech = modality == "speech"
                own = [a for a in asked if (a[3] >= lm.format.text_vocab_size) == is_speech]
                if not own:
                    continue
                branch = lm.branch_of(modality)
                at_N = torch.tensor([a[2] for a in own], device=device)
                ids_N = torch.tensor([a[3] - branch.first_row for a in own], device=device)
                mask_V = None if allowed is None else allowed.get(modality)
                values = zip(*_head_scores(branch, hidden.of(branch)[at_N], ids_N, mask_V), strict=True)
                for (s, n, _, _), (log_prob, greedy) in zip(own, values, strict=True):
                    scores[s].log_probs[n], scores[s].greedy[n] = log_prob, greedy
    return scores


def packs(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Groups indices of sequences, in order, into packs of at most `most` rows, or a single sequence."""
    pack: list[int] = []
    used = 0
    for place, length in enumerate(lengths):
        if pack and used + length > most:
            yield pack
            pack, used = [], 0
        pack.append(place)
        used += length
    if pack:
        yield pack


class _Hidden:
    """Outputs of the blocks for one pack, each computed on request."""

    def __init__(self, lm: SplitLM, rows_1L: Tensor, ids_1L: Tensor) -> None:
        segments = Segments.of(ids_1L, lm.attention, lm.text_lm_head.weight.dtype)
        h_1LD = lm.embed(rows_1L)
        self._kwargs: dict[str, Any] = {
            "segments": segments, "rope": lm.rotary(h_1LD, position_ids=segments.positions_BL)
        }  # fmt: skip
        self._trunk_1LD = lm.trunk(h_1LD, **self._kwargs)
        self._outputs: dict[Modality, Tensor] = {}

    def of(self, branch: Branch) -> Tensor:
        """Output of a branch's block, (L, D)."""
        if branch.name not in self._outputs:
            self._outputs[branch.name] = branch.block(self._trunk_1LD, **self._kwargs)[0]
        return self._outputs[branch.name]


def _head_scores(
    branch: Branch, hidden_ND: Tensor, ids_N: Tensor, allowed_V: Tensor | None
) -> tuple[list[float], list[bool]]:
    """Log-probability of each id, and whether it is the most likely one."""
    step = max(1, CHUNK_ELEMENTS.get(hidden_ND.device.type, 2**25) // branch.head.out_features)
    log_probs: list[float] = []
    greedy: list[bool] = []
    for h, ids in zip(hidden_ND.split(step), ids_N.split(step), strict=True):
        logits = branch.head(branch.norm(h)).float()
        if allowed_V is not None:
            logits.masked_fill_(~allowed_V.to(logits.device), -torch.inf)
        at = logits.gather(1, ids[:, None])[:, 0]
        log_probs += (at - logits.logsumexp(1)).tolist()
        greedy += (logits.argmax(1) == ids).tolist()
    return log_probs, greedy
