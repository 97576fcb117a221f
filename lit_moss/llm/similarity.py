"""How alike text and speech are, layer by layer (paper, appendix C).

Shapes: n text rows, m speech rows, E hidden size, K layers, J aligned pairs of (text rows, speech rows).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_moss.llm.branches import Modality, Network

Pair = tuple[slice, slice]  # text rows, and the speech rows of the same words


@torch.no_grad()
def hidden_states(lm: Network, rows_L: Tensor, modality: Modality) -> Tensor:
    """Output of every layer, the trunk's and then that modality's tail's: (L,) rows -> (K, L, E) float32.

    Args:
        lm: The model.
        rows_L: Rows of one document.
        modality: `text` or `speech`: whose tail to follow after the trunk.
    """
    states: list[Tensor] = []
    layers = [*lm.trunk.layers, *lm.branch_of(modality).block.layers]
    hooks = [
        layer.register_forward_hook(
            lambda _, __, out: states.append((out[0] if isinstance(out, tuple) else out)[0].float())
        )
        for layer in layers
    ]
    try:
        lm(rows_L[None])
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(states)


def cosine_matrix(text_nE: Tensor, speech_mE: Tensor) -> Tensor:
    """cos of every text row with every speech row: (..., n, E), (..., m, E) -> (..., n, m)."""
    return (
        torch.nn.functional.normalize(text_nE, dim=-1) @ torch.nn.functional.normalize(speech_mE, dim=-1).mT
    )


def dtw_path(similarity_nm: Tensor) -> list[tuple[int, int]]:
    """The warping path from (0, 0) to (n-1, m-1), steps (1, 0), (0, 1), (1, 1), of the least sum of
    1 - similarity.

    1 - similarity, the usual cosine distance, and not the largest sum of similarities: that one prefers long
    paths. Of equal ones the diagonal step is taken.
    """
    return _back(_costs(similarity_nm[None])[0].tolist())


def _back(cost: list[list[float]]) -> list[tuple[int, int]]:
    u, v = len(cost) - 1, len(cost[0]) - 1
    path = [(u, v)]
    while u or v:
        steps = [(u - 1, v - 1), (u - 1, v), (u, v - 1)]
        u, v = min((s for s in steps if min(s) >= 0), key=lambda s: cost[s[0]][s[1]])
        path.append((u, v))
    return path[::-1]


def _costs(similarity_Knm: Tensor) -> Tensor:
    """Least cost of a path to each cell, all K matrices at once, one anti-diagonal after the other."""
    distance = 1.0 - similarity_Knm.double()
    K, n, m = distance.shape
    cost = distance.new_full((K, n + 1, m + 1), float("inf"))
    cost[:, 0, 0] = 0.0
    for d in range(n + m - 1):
        u = torch.arange(max(0, d - m + 1), min(n, d + 1))
        v = d - u
        before = torch.minimum(torch.minimum(cost[:, u, v], cost[:, u, v + 1]), cost[:, u + 1, v])
        cost[:, u + 1, v + 1] = distance[:, u, v] + before
    return cost[:, 1:, 1:]


def dtw_similarity(similarity_Knm: Tensor) -> Tensor:
    """DTW_ij: mean similarity along the warping path of each matrix, (K, n, m) -> (K,)."""
    paths = map(_back, _costs(similarity_Knm).tolist())
    along = (
        similarity_nm[tuple(zip(*path, strict=True))]
        for similarity_nm, path in zip(similarity_Knm, paths, strict=True)
    )
    return torch.stack([values.mean() for values in along])


@dataclass(frozen=True)
class Alignment:
    """DTW_ij and BG_ij of the aligned pairs of one utterance, (K, J) each."""

    dtw_KJ: Tensor
    background_KJ: Tensor


def without_first_row(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs less row 0 of either modality; a pair that had no other row is left out.

    Decoders gather attention at row 0, whose norm is some hundred times that of the others: its direction is
    the model's own and does not depend on the input.
    """
    cut = [(slice(max(1, t.start), t.stop), slice(max(1, s.start), s.stop)) for t, s in pairs]
    return [(t, s) for t, s in cut if t.start < t.stop and s.start < s.stop]


class LayerMeans:
    """Mean hidden state of each layer over the rows of all samples of one modality, row 0 left out.

    Hidden states of any two texts point in much the same direction (cosines of .56 to .70 between unrelated
    ones, half of the energy in two directions), which hides what they share of content. The centred score
    takes the mean of layer and modality away first.
    """

    def __init__(self) -> None:
        self._sum_KE: Tensor | None = None
        self._rows = 0

    def add(self, states_KnE: Tensor) -> None:
        """Counts the rows of one sample, (K, n, E)."""
        total_KE = states_KnE[:, 1:].double().sum(dim=1)
        self._sum_KE = total_KE if self._sum_KE is None else self._sum_KE + total_KE
        self._rows += states_KnE.shape[1] - 1

    def remove(self, states_KnE: Tensor) -> Tensor:
        """The states less the mean of each layer, (K, n, E)."""
        if self._sum_KE is None or not self._rows:
            raise ValueError("no rows to take the mean of: add samples of two rows or more first")
        return states_KnE - (self._sum_KE / self._rows)[:, None].to(states_KnE.dtype)


def align(text_KnE: Tensor, speech_KmE: Tensor, pairs: Sequence[Pair], first_row: int = 0) -> Alignment:
    """Similarity along each pair's path, and that of its speech with all other text.

    Args:
        text_KnE: Hidden states of the text, (K, n, E), on any device; the result is on the CPU.
        speech_KmE: Those of the speech, (K, m, E).
        pairs: Rows of the same words.
        first_row: Text rows before this one do not count as background either.

    Raises:
        ValueError: if a pair is empty, or holds all the text: there is no background then.
    """
    n = text_KnE.shape[1]
    whole_Knm = cosine_matrix(text_KnE, speech_KmE).cpu()
    dtw, background = [], []
    for text, speech in pairs:
        inside = torch.zeros(n, dtype=torch.bool)
        inside[text] = True
        inside[:first_row] = True
        part = whole_Knm[:, text, speech]
        if not part.numel() or inside.all():
            raise ValueError(f"pair {text}, {speech} of {n} text rows is empty, or leaves no text outside it")
        dtw.append(dtw_similarity(part))
        background.append(whole_Knm[:, ~inside][:, :, speech].mean(dim=(1, 2)))
    return Alignment(torch.stack(dtw, dim=1), torch.stack(background, dim=1))


def similarity_score(alignments: Sequence[Alignment], mean: bool = True) -> Tensor:
    """SS_i, (K,): how much more alike aligned text and speech are than what is not aligned.

    lambda is the mean of all DTW_ij, over layers and pairs.

    Args:
        alignments: Alignments; their pairs count together.
        mean: Mean over pairs; the paper's formula sums them.
    """
    dtw = torch.cat([a.dtw_KJ for a in alignments], dim=1).double()
    background = torch.cat([a.background_KJ for a in alignments], dim=1).double()
    below = background + dtw.mean()
    # Similarities may be negative: a denominator near zero would make one pair the whole score.
    below = torch.where(below.abs() < 1e-3, torch.full_like(below, 1e-3).copysign(below), below)
    ratio = dtw / below
    return ratio.mean(dim=1) if mean else ratio.sum(dim=1)


def proposed_depth(score_K: Tensor, tolerance: float = 0.1) -> int:
    """Layers for each tail: those after the last one whose score is within `tolerance` of the curve's range
    below its maximum; there the curve starts to fall."""
    top, bottom = float(score_K.max()), float(score_K.min())
    near = (score_K >= top - tolerance * (top - bottom)).nonzero()
    return len(score_K) - 1 - int(near[-1])
