"""An auxiliary CTC loss on the trunk of the split language model: its states at codes predict the text.

    rows      sosp  c_1  c_2  c_3  c_4  eosp …        text of the speech, stored in the documents: "a cat"
    hidden          h_1  h_2  h_3  h_4                output of the trunk, or of one of its layers
    head            └─ norm, linear ─┘                labels: text ids, or characters (four frames per code)
    loss      -log p("a cat" | h_1 … h_4) / labels    CTC (Graves et al. 2006)

A span is the codes of consecutive utterances, chunks or words. Adjacent spans are merged, so word alignments
do not constrain the loss. The head is part of training and its checkpoints, not of the exported model.
Shapes: B sequences, L rows, D width, S spans, N codes of the longest span, F frames (N, or 4 N for
characters), V labels with blank and unknown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_moss.audio import rates
from lit_moss.codec.ctc import BLANK, UNKNOWN, CharVocabulary, fitting_items, greedy
from lit_moss.contracts import SpokenTextData
from lit_moss.data.batches import SpeechText
from lit_moss.data.transcripts import edit_distance, normalise
from lit_moss.errors import UserError

HEAD = "ctc_head"  # attribute of the module, and name of the optimizer group
FRAMES_PER_CODE = rates.HIDDEN_PER_CODE  # for characters
_FRAME_WIDTH = 256  # width of a frame, for characters


@dataclass(frozen=True)
class TrunkCtc:
    """Options of the auxiliary CTC loss on the trunk.

    Args:
        weight: Weight relative to the cross-entropy; both are sums in nats divided by the number of targets.
            Labels are about a sixth of the targets, so 1.7 corresponds to 0.3 of the mean over labels.
        layer: Number of trunk layers before the hidden states, from 1 to all. None: the output of the trunk.
        vocab: Labels: `text`, ids of the text tokenizer, whose rows are initialised with their embeddings; or
            `chars`, normalised as for the speech tokenizer (`latin_chinese`), with four frames per code,
            because English has 14 characters and 12.5 codes a second.
    """

    weight: float = 1.7
    layer: int | None = None
    vocab: Literal["text", "chars"] = "text"

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"model.ctc.weight is {self.weight}, expected above 0 (ctc: null turns it off)")
        if self.vocab not in ("text", "chars"):
            raise UserError(f"model.ctc.vocab is {self.vocab!r}, expected text or chars")
        if self.layer is not None and self.layer < 1:
            raise UserError(f"model.ctc.layer is {self.layer}, expected 1 or more, or null")

    def layers(self, trunk: int) -> int:
        """Number of trunk layers before the hidden states.

        Args:
            trunk: Number of trunk layers of the model.

        Raises:
            UserError: if the trunk has fewer layers.
        """
        if self.layer is not None and self.layer > trunk:
            raise UserError(f"model.ctc.layer is {self.layer}, the trunk has {trunk} layers")
        return trunk if self.layer is None else self.layer


class TextLabels:
    """Labels for text ids: blank, unknown, then the ids in order.

    Args:
        ids: Ids that occur in the training data, sorted.
        frames_per_code: Frames per code; above 1 if labels are shorter than words, such as characters.
    """

    def __init__(self, ids: Sequence[int], frames_per_code: int = 1) -> None:
        self.ids, self.frames_per_code = list(ids), frames_per_code
        self._label = {text_id: i + 2 for i, text_id in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids) + 2

    def encode(self, ids: Sequence[int]) -> list[int]:
        """Text ids -> labels."""
        return [self._label.get(i, UNKNOWN) for i in ids]

    def record(self) -> dict[str, Any]:
        """The labels as plain values, for a checkpoint."""
        return {"vocab": "text", "ids": self.ids}


class CharLabels:
    """Labels for characters, see `CharVocabulary`.

    Args:
        tokenizer: Text tokenizer of the documents.
        vocabulary: The characters.
    """

    frames_per_code = FRAMES_PER_CODE

    def __init__(self, tokenizer: Any, vocabulary: CharVocabulary) -> None:
        self._tokenizer, self.vocabulary = tokenizer, vocabulary

    @classmethod
    def of_ids(cls, tokenizer: Any, ids: Sequence[int]) -> "CharLabels":
        """Labels of the characters that these text ids spell alone; every other character is unknown."""
        texts = [normalise(tokenizer.decode([i])) for i in ids]
        # An apostrophe is kept only within a word, so no single id yields it.
        return cls(tokenizer, CharVocabulary.from_texts([*texts, " '"]))

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, ids: Sequence[int]) -> list[int]:
        """Text ids -> labels."""
        return self.vocabulary.encode(normalise(self._tokenizer.decode(ids)))

    def record(self) -> dict[str, Any]:
        """The labels as plain values, for a checkpoint."""
        return {"vocab": "chars", "characters": self.vocabulary.characters}


Labels = TextLabels | CharLabels


def labels_of(ctc: TrunkCtc, data: SpokenTextData) -> Labels:
    """The labels for the text of the training data.

    Raises:
        UserError: if there is no text.
    """
    ids = data.spoken_ids().tolist()
    if not ids:
        raise UserError(
            "model.ctc is on, but no speech of the training documents has its text beside it: give "
            "transcribed speech, or ctc: null"
        )
    return TextLabels(ids) if ctc.vocab == "text" else CharLabels.of_ids(data.text_tokenizer(), ids)


def recorded_labels(record: Mapping[str, Any], data: SpokenTextData) -> Labels:
    """Labels as a checkpoint records them, see `TextLabels.record`."""
    if record["vocab"] == "text":
        return TextLabels(record["ids"])
    return CharLabels(data.text_tokenizer(), CharVocabulary(record["characters"]))


@dataclass
class CtcSums:
    """CTC loss of a batch's spans.

    Args:
        nll: Sum of -log p in nats over the spans that fit, differentiable; ().
        labels: Number of labels in these spans.
        skipped: Number of spans with more labels than frames, which CTC cannot align.
        errors: Number of label errors of the best path; 0 if not requested.
    """

    nll: Tensor
    labels: int
    skipped: int
    errors: int = 0

    @property
    def mean(self) -> Tensor:
        """Mean loss in nats per label, ()."""
        return self.nll / max(1, self.labels)


class TrunkCtcHead(nn.Module):
    """Predicts labels from hidden states at codes.

    Args:
        labels: The labels.
        words_VD: Embeddings of text ids, with which the rows of `TextLabels` are initialised.
    """

    def __init__(self, labels: Labels, words_VD: Tensor) -> None:
        super().__init__()
        self.labels = labels
        width = words_VD.shape[1]
        self.norm = nn.LayerNorm(width)
        self.upsample: nn.Linear | None = None
        self.frame_norm: nn.LayerNorm | None = None
        if labels.frames_per_code > 1:
            self.upsample = nn.Linear(width, labels.frames_per_code * _FRAME_WIDTH)
            self.frame_norm = nn.LayerNorm(_FRAME_WIDTH)
            width = _FRAME_WIDTH
        self.proj = nn.Linear(width, len(labels))
        if isinstance(labels, TextLabels) and labels.frames_per_code == 1:
            with torch.no_grad():
                self.proj.weight[:2] = 0.0
                self.proj.weight[2:] = words_VD[torch.tensor(labels.ids)].to(self.proj.weight)
                self.proj.bias.zero_()

    def log_probs(self, h_SND: Tensor) -> Tensor:
        """Hidden states (S, N, D) -> log-probabilities (S, F, V), float32."""
        x = self.norm(h_SND.to(self.norm.weight.dtype))
        if self.upsample is not None and self.frame_norm is not None:
            x = self.upsample(x).unflatten(-1, (self.labels.frames_per_code, -1)).flatten(1, 2)
            x = self.frame_norm(x)
        return self.proj(x).float().log_softmax(dim=-1)

    def forward(self, h_BLD: Tensor, spans: Sequence[SpeechText], count_errors: bool = False) -> CtcSums:
        """CTC loss of a batch.

        Args:
            h_BLD: Hidden states of the trunk (B, L, D).
            spans: Text of each stretch of codes.
            count_errors: Also count the label errors of the best path.
        """
        device, L = h_BLD.device, h_BLD.shape[1]
        labels = [self.labels.encode(span.ids) for span in spans]
        codes = [span.stop - span.first for span in spans]
        spoken = [i for i, ids in enumerate(labels) if ids]
        fitting = set(fitting_items([n * self.labels.frames_per_code for n in codes], labels))
        used = [i for i in spoken if i in fitting]
        if not used:
            # Every parameter needs a gradient on each rank.
            nll = h_BLD.sum() * 0.0 + sum(p.sum() for p in self.parameters()) * 0.0
            return CtcSums(torch.as_tensor(nll), 0, len(spoken))
        firsts = torch.tensor([spans[i].sequence * L + spans[i].first for i in used])
        stops = torch.tensor([spans[i].sequence * L + spans[i].stop - 1 for i in used])
        at_SN = firsts[:, None] + torch.arange(max(codes[i] for i in used))
        at_SN = torch.minimum(at_SN, stops[:, None]).to(device, non_blocking=True)  # past the end: unused
        log_probs_SFV = self.log_probs(h_BLD.flatten(0, 1)[at_SN])
        frames = [codes[i] * self.labels.frames_per_code for i in used]
        targets = [labels[i] for i in used]
        flat = torch.tensor([x for ids in targets for x in ids]).to(device, non_blocking=True)
        lengths = [len(ids) for ids in targets]
        # Lengths as plain numbers, an overload that `F.ctc_loss` does not declare. Reduction 0: one loss per
        # span.
        nll = torch.ctc_loss(log_probs_SFV.transpose(0, 1), flat, frames, lengths, BLANK, 0, True)
        errors = 0
        if count_errors:
            best = greedy(log_probs_SFV, torch.tensor(frames))
            errors = sum(edit_distance(a, b) for a, b in zip(targets, best, strict=True))
        return CtcSums(nll.sum(), sum(lengths), len(spoken) - len(used), errors)


class CtcTotals:
    """Sums over the batches of a validation."""

    def __init__(self) -> None:
        self._nll: Tensor | float = 0.0
        self._labels = self._skipped = self._errors = 0

    def add(self, sums: CtcSums) -> None:
        """Adds the sums of a batch."""
        self._nll = self._nll + sums.nll.detach().double()
        self._labels += sums.labels
        self._skipped += sums.skipped
        self._errors += sums.errors

    def metrics(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`ctc` in nats per label, `ctc_error`, the label error rate of the best path (above 1 with many
        insertions), and `ctc_skipped`. Only the last if there are no labels.

        Args:
            over_ranks: Returns the sum of a tensor over all ranks.
        """
        values = [float(self._nll), self._labels, self._errors, self._skipped]
        nll, labels, errors, skipped = over_ranks(torch.tensor(values, dtype=torch.float64)).tolist()
        found = {"ctc": nll / labels, "ctc_error": errors / labels} if labels else {}
        return found | {"ctc_skipped": skipped}


def stored_head(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Labels and weights of a checkpoint's CTC head, or None."""
    if "ctc" not in checkpoint:
        return None
    prefix, state = f"{HEAD}.", checkpoint["state_dict"]
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return checkpoint["ctc"] | {"state": weights}


def check_same_ctc(stored: Mapping[str, Any] | None, head: TrunkCtcHead | None) -> None:
    """Refuses to resume with a CTC head other than the checkpoint's.

    Raises:
        UserError: if only one of them has a head, or their labels differ.
    """
    if (stored is None) != (head is None):
        has, now = ("no head", "on") if stored is None else ("a head", "off")
        raise UserError(
            f"the checkpoint has {has} for CTC, model.ctc is {now}: resume as it was trained, or start a new "
            "run from it (model.init_args.init_from)"
        )
    if stored is not None and head is not None and stored["labels"] != head.labels.record():
        raise UserError(
            f"the checkpoint's head for CTC has other labels ({stored['labels']['vocab']}) than this run's "
            f"({len(head.labels)} of {head.labels.record()['vocab']}): resume with the same data and "
            "model.ctc.vocab"
        )
