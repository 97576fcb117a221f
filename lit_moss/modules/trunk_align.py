"""Alignment of the trunk's states at word ends with the states of the text.

    rows      sosp  c_1  c_2  c_3  c_4  c_5  eosp …     "a" is c_1 c_2, "cat" is c_3 c_4 c_5
    student              s_1            s_2             the trunk's first layers, at the last code of a word
    teacher   sosp       a              cat             the unmodified backbone's first layers, on text alone
    loss      |s - t|² / variance of t + contrast of s with all t of the batch + |student - teacher|² on text

The trunk recognises a word if its state at the word's end equals the state that the word's text would give.
The later layers of the backbone can then continue from speech as they do from text. Full training reaches
such states late; their distance can be minimised from the first step, training the lower layers only.
Shapes: B sequences, L rows, D width, P positions, R rows of text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_moss.data.batches import SpeechText, TokenBatch
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.modules.teacher import FrozenText

_TEMPERATURE = 0.05
_MOST_COMPARED = 1024  # positions compared at once; memory grows with its square
_LONGEST_WORD = 12  # text ids; longer entries are sentences without word times
_SPACES = ("\u0120", "\u2581")  # prefixes of word-initial tokens in byte-level and SentencePiece vocabularies
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class TrunkAlign:
    """Options of the alignment of the trunk's states at word ends with the states of the text.

    Args:
        layer: Number of trunk layers before the aligned states, from 1 to all.
        weight: Weight of the squared error, relative to the variance of the text's states.
        contrast: Weight of the contrastive loss, in nats: cross-entropy over the cosines of a state with the
            text states of the batch, at temperature 0.05.
        keep: Weight of the relative squared error on rows of text alone, which preserves the text states.
        alone: Run only these layers and no cross-entropy, at a third of a step's cost; the run may then train
            only `audio_embedding` and these layers, see the freezing policy `listening`. False: the losses,
            summed over positions and divided by the number of targets, are added to the cross-entropy.
            Positions are about a sixth of the targets, so the weights are larger in that case: 1.7, 0.55 and
            0 (conf/talk/stage2.yaml).
    """

    layer: int = 10
    weight: float = 1.0
    contrast: float = 0.3
    keep: float = 1.0
    alone: bool = True

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise UserError(f"model.align.layer is {self.layer}, expected 1 or more")
        weights = (self.weight, self.contrast, self.keep)
        if min(weights) < 0 or self.weight + self.contrast <= 0:
            raise UserError(
                f"model.align has weight {self.weight}, contrast {self.contrast}, keep {self.keep}: expected "
                "0 or more, weight or contrast above 0 (align: null turns it off)"
            )

    def layers(self, trunk: int) -> int:
        """Number of trunk layers before the states.

        Args:
            trunk: Number of trunk layers of the model.

        Raises:
            UserError: if the trunk has fewer layers.
        """
        if self.layer > trunk:
            raise UserError(f"model.align.layer is {self.layer}, the trunk has {trunk} layers")
        return self.layer

    def check_trained(self, trained: set[str]) -> None:
        """With `alone`, refuses to train parameters that would get no gradient.

        Args:
            trained: Names of the parameters that train at some step.

        Raises:
            UserError: if there are such parameters.
        """
        layers = tuple(f"model.shared_block.layers.{i}." for i in range(self.layer))
        wrong = sorted(n for n in trained if not n.startswith(("model.audio_embed.", *layers)))
        if self.alone and wrong:
            raise UserError(
                f"model.align.alone computes the first {self.layer} layers, but {wrong[0]} is to train: give "
                f"StagedFreezing {{policy: listening, layers: {self.layer}}}, or align.alone false"
            )


class Places(NamedTuple):
    """Positions of a batch's text ids, in the speech and in the text alone.

    Args:
        at: Indices of the codes in the flattened (B L) rows.
        text_at: Indices of the text ids in `rows`.
        ids: The text ids.
        rows: Rows of text alone: for each stretch, sosp and its text ids.
        lengths: Number of rows of each stretch.
    """

    at: list[int]
    text_at: list[int]
    ids: list[int]
    rows: list[int]
    lengths: list[int]


def places_of(spans: Sequence[SpeechText], L: int, sosp: int, is_word: Callable[[list[int]], bool]) -> Places:
    """Assigns text ids to codes: a word's last id to its last code, the others evenly over the word.

    A word without a code of its own (shorter than 80 ms) is assigned to the preceding code. Stretches in
    which an entry is not a single word are skipped: they have no word times.

    Args:
        spans: Text of the speech in the batch.
        L: Number of rows of a sequence.
        sosp: Row to insert at the start of each stretch of text, as in speech.
        is_word: Returns whether text ids form a single word.
    """
    places = Places([], [], [], [], [])
    for span in spans:
        words, first = [], 0
        for _, count in span.words:
            words.append(span.ids[first : first + count])
            first += count
        if not span.ids or span.stop <= span.first or not all(map(is_word, words)):
            continue
        start = span.sequence * L + span.first
        code = 0
        for (codes, _), ids in zip(span.words, words, strict=True):
            for j in range(len(ids)):
                here = code + math.ceil(codes * (j + 1) / len(ids)) - 1
                places.at.append(start + max(0, here))
            code += codes
        text = len(places.rows) + 1
        places.text_at.extend(range(text, text + len(span.ids)))
        places.ids.extend(span.ids)
        places.rows.extend([sosp, *span.ids])
        places.lengths.append(1 + len(span.ids))
    return places


class WordTest:
    """Tests whether text ids form a single word, as in documents with word times.

    Args:
        tokenizer: Text tokenizer of the ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._begins: dict[int, bool] = {}

    def __call__(self, ids: list[int]) -> bool:
        """True for at most 12 ids, of which only the first may begin a word."""
        return len(ids) <= _LONGEST_WORD and not any(self._begins_word(i) for i in ids[1:])

    def _begins_word(self, text_id: int) -> bool:
        if text_id not in self._begins:
            token = str(self._tokenizer.convert_ids_to_tokens(text_id))
            self._begins[text_id] = token.startswith(_SPACES)
        return self._begins[text_id]


@dataclass
class AlignLosses:
    """Alignment losses of a batch.

    Args:
        total: Weighted sum of the losses, differentiable; ().
        align: Relative squared error at the positions; ().
        contrast: Contrastive loss in nats per position; ().
        keep: Relative squared error on the rows of text, 0 if its weight is 0; ().
        found: Number of positions whose nearest text state in the batch has the same id, int64 ().
        places: Number of positions.
    """

    total: Tensor
    align: Tensor
    contrast: Tensor
    keep: Tensor
    found: Tensor
    places: int

    def values(self) -> dict[str, Tensor]:
        """Values to log for a training batch; empty if there are no positions."""
        named = {"align": self.align, "align_contrast": self.contrast, "align_keep": self.keep}
        return named if self.places else {}


def relative_error(s_PD: Tensor, t_PD: Tensor) -> Tensor:
    """mean (s - t)² / variance of t over the positions; 0 if t is constant."""
    variance = (t_PD - t_PD.mean(0)).pow(2).mean()
    error = (s_PD - t_PD).pow(2).mean() / variance.clamp_min(_LEAST_VARIANCE)
    return torch.where(variance > _LEAST_VARIANCE, error, 0.0 * error)


def contrast(s_PD: Tensor, t_PD: Tensor, ids_P: Tensor) -> tuple[Tensor, Tensor]:
    """Contrastive loss: mean of -log p(own t | s), where other positions with the same id are no negatives.

    Also returns the number of s whose nearest t has the same id. p is a softmax over cosines, computed after
    subtracting the mean of t.

    More than 1024 positions are split into equal groups of adjacent positions, which are compared separately.
    """
    centre_D = t_PD.mean(0)
    s_PD, t_PD = (F.normalize(x - centre_D, dim=1) for x in (s_PD, t_PD))
    nll, found = s_PD.new_zeros(()), torch.zeros((), dtype=torch.long, device=s_PD.device)
    groups = math.ceil(len(ids_P) / _MOST_COMPARED)
    for s, t, ids in zip(*(x.tensor_split(groups) for x in (s_PD, t_PD, ids_P)), strict=True):
        logits = s @ t.T / _TEMPERATURE
        own = torch.arange(len(ids), device=ids.device)
        found += (ids[logits.detach().argmax(1)] == ids).sum()
        same = (ids[:, None] == ids) & (own[:, None] != own)
        nll = nll + F.cross_entropy(logits.masked_fill(same, -1e4), own, reduction="sum")
    return nll / len(ids_P), found


class TrunkAligner:
    """Computes alignment losses against a teacher.

    The teacher is not a submodule: checkpoints, optimizers and reducers do not include it, and it is created
    from the backbone again when a run is resumed.

    Args:
        option: Layer and weights of the losses.
        teacher: Frozen first layers of the backbone.
        tokenizer: Text tokenizer.
    """

    def __init__(self, option: TrunkAlign, teacher: FrozenText, tokenizer: Any) -> None:
        self.option, self.teacher = option, teacher
        self._is_word = WordTest(tokenizer)

    def __call__(self, lm: SplitLM, batch: TokenBatch, hidden_BLD: Tensor | None = None) -> AlignLosses:
        """Alignment losses of a batch.

        Args:
            lm: The student.
            batch: Rows, and the text that their speech says.
            hidden_BLD: The student's states after `layer` layers (B, L, D). None: they are computed.
        """
        o = self.option
        if hidden_BLD is None:
            hidden_BLD = lm.hidden(batch.rows_BL, batch.document_ids_BL, o.layer)
        device, L = hidden_BLD.device, hidden_BLD.shape[1]
        self.teacher.to(device)
        places = places_of(batch.speech_text, L, lm.format.sosp_token_id, self._is_word)
        zero = torch.zeros((), device=device)
        if not places.at:
            # Every parameter needs a gradient on each rank.
            return AlignLosses(hidden_BLD.float().sum() * 0.0, zero, zero, zero, zero.long(), 0)
        at_P, text_P, ids_P, rows_R = (
            torch.tensor(x).to(device, non_blocking=True)
            for x in (places.at, places.text_at, places.ids, places.rows)
        )
        lengths = torch.tensor(places.lengths)
        documents_1R = torch.arange(len(lengths)).repeat_interleave(lengths)[None].to(device)
        borders = [[0, *lengths.cumsum(0).tolist()]]
        text_RD = self.teacher(rows_R[None], documents_1R, borders)[0]
        s_PD = self.teacher.normed(hidden_BLD.flatten(0, 1)[at_P])
        t_RD = self.teacher.normed(text_RD)
        t_PD = t_RD[text_P]
        align = relative_error(s_PD, t_PD)
        nats, found = contrast(s_PD, t_PD, ids_P)
        keep = zero
        if o.keep:
            keep = relative_error(
                self.teacher.normed(lm.hidden(rows_R[None], documents_1R, o.layer)[0]), t_RD
            )
        total = o.weight * align + o.contrast * nats + o.keep * keep
        return AlignLosses(total, align.detach(), nats.detach(), keep.detach(), found, len(places.at))


class AlignTotals:
    """Means over the positions of all validation batches."""

    def __init__(self) -> None:
        self._sums: Tensor | float = 0.0

    def add(self, losses: AlignLosses) -> None:
        """Adds the losses of a batch."""
        n = losses.places
        means = torch.stack([losses.total.detach(), losses.align, losses.contrast, losses.keep]).double()
        counts = torch.stack([losses.found, torch.full_like(losses.found, n)]).double()
        self._sums = self._sums + torch.cat([means * n, counts])

    def metrics(self, over_ranks: Callable[[Tensor], Tensor], alone: bool) -> dict[str, float]:
        """`align`, `align_contrast`, `align_keep` and `align_found`, the fraction of positions whose nearest
        text state in the batch has the same id. Empty if there are no positions.

        Args:
            over_ranks: Returns the sum of a tensor over all ranks.
            alone: Also return the weighted sum as `loss`.
        """
        sums = torch.as_tensor(self._sums, dtype=torch.float64)
        total, align, nats, keep, found, places = over_ranks(sums.expand(6).clone()).tolist()
        if not places:
            return {}
        means = {"align": align, "align_contrast": nats, "align_keep": keep, "align_found": found}
        return {name: x / places for name, x in (means | ({"loss": total} if alone else {})).items()}
