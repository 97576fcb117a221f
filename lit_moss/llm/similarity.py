"""Layer-wise similarity of text and speech representations (paper, appendix C).

Shapes: n text rows, m speech rows, E hidden size, K layers, J aligned pairs of (text rows, speech rows).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_moss.llm.branches import Modality, Network

Pair = tuple[slice, slice]  # text rows, speech rows of the same words


@torch.no_grad()
def hidden_states(lm: Network, rows_L: Tensor, modality: Modality) -> Tensor:
    """Outputs of all layers of the trunk, then of the modality's tail: rows (L,) -> (K, L, E) float32.

    Args:
        lm: The model.
        rows_L: Rows of one document.
        modality: Tail to run after the trunk: `text` or `speech`.
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
    """Cosine similarity of every text row with every speech row: (..., n, E), (..., m, E) -> (..., n, m)."""
    return (
        torch.nn.functional.normalize(text_nE, dim=-1) @ torch.nn.functional.normalize(speech_mE, dim=-1).mT
    )


def dtw_path(similarity_nm: Tensor) -> list[tuple[int, int]]:
    """The warping path from (0, 0) to (n-1, m-1) with the least sum of 1 - similarity.

    Steps are (1, 0), (0, 1) and (1, 1).

    Minimises the cosine distance 1 - similarity instead of maximising the sum of similarities, because the
    latter favours long paths. On ties the diagonal step is taken.
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
    """Least cost of a path to each cell, for all K matrices at once, one anti-diagonal after the other."""
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
    """The pairs without row 0 of either modality; pairs with no other row are dropped.

    Decoders use row 0 as an attention sink. Its norm is some hundred times that of other rows, and its
    direction belongs to the model, not to the input.
    """
    cut = [(slice(max(1, t.start), t.stop), slice(max(1, s.start), s.stop)) for t, s in pairs]
    return [(t, s) for t, s in cut if t.start < t.stop and s.start < s.stop]


class LayerMeans:
    """Mean hidden state of each layer over the rows of all samples of one modality, without row 0.

    Hidden states of any two texts point in similar directions (cosines of .56 to .70 between unrelated ones,
    half of the energy in two directions), which masks similarity of content. The centred score first
    subtracts the mean of each layer and modality.
    """

    def __init__(self) -> None:
        self._sum_KE: Tensor | None = None
        self._rows = 0

    def add(self, states_KnE: Tensor) -> None:
        """Adds the rows (K, n, E) of one sample."""
        total_KE = states_KnE[:, 1:].double().sum(dim=1)
        self._sum_KE = total_KE if self._sum_KE is None else self._sum_KE + total_KE
        self._rows += states_KnE.shape[1] - 1

    def remove(self, states_KnE: Tensor) -> Tensor:
        """Subtracts the mean of each layer from the states (K, n, E)."""
        if self._sum_KE is None or not self._rows:
            raise ValueError("no rows to take the mean of: add samples of two rows or more first")
        return states_KnE - (self._sum_KE / self._rows)[:, None].to(states_KnE.dtype)


def align(text_KnE: Tensor, speech_KmE: Tensor, pairs: Sequence[Pair], first_row: int = 0) -> Alignment:
    """Similarity along the warping path of each pair, and of the pair's speech with all other text.

    Args:
        text_KnE: Hidden states of the text (K, n, E), on any device; the result is on the CPU.
        speech_KmE: Hidden states of the speech (K, m, E).
        pairs: Text rows and speech rows of the same words.
        first_row: Text rows before this one are excluded from the background.

    Raises:
        ValueError: if a pair is empty, or contains all of the text, which leaves no background.
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
    """SS_i, (K,): how much more similar aligned text and speech are than unaligned ones.

    lambda is the mean of all DTW_ij, over layers and pairs.

    Args:
        alignments: Alignments; pairs of all alignments are counted together.
        mean: Average over pairs; if false, sum over them as in the paper's formula.
    """
    dtw = torch.cat([a.dtw_KJ for a in alignments], dim=1).double()
    background = torch.cat([a.background_KJ for a in alignments], dim=1).double()
    below = background + dtw.mean()
    # Similarities may be negative: with a denominator near zero, one pair would dominate the score.
    below = torch.where(below.abs() < 1e-3, torch.full_like(below, 1e-3).copysign(below), below)
    ratio = dtw / below
    return ratio.mean(dim=1) if mean else ratio.sum(dim=1)


def proposed_depth(score_K: Tensor, tolerance: float = 0.1) -> int:
    """Number of layers of each tail: the layers after the last one whose score is within `tolerance` of the
    curve's range below its maximum, where the curve starts to fall."""
    top, bottom = float(score_K.max()), float(score_K.min())
    near = (score_K >= top - tolerance * (top - bottom)).nonzero()
    return len(score_K) - 1 - int(near[-1])
