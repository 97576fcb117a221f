"""Losses of a run beside the cross-entropy: CTC, alignment and distillation of text, each an option.

    TokenBatch ─ SplitLM.loss ─┬─ hidden_BLD ─┬─ TrunkCtcHead ─┬─ weight · sum / targets ─ added to the loss
                               │              └─ TrunkAligner ─┤
                               └─ text_BLD ───── TextDistiller ┘

Each is the sum over its labels, places or rows, divided by the batch's targets: so micro-batches and ranks
count by what they hold, as they do in the cross-entropy, see `Window`.
CTC and alignment need the trunk's states after some layers, `SplitLM.keep_hidden`, and what the batch's
speech says; distillation needs the text tail's outputs, `SplitLM.keep_text`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_moss import contracts
from lit_moss.data.batches import TokenBatch
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.losses import SplitLoss
from lit_moss.modules.parallel import saves_shards
from lit_moss.modules.text_distill import DistillTotals, TextDistill, TextDistiller, TextTeacher
from lit_moss.modules.trunk_align import AlignLosses, AlignTotals, Teacher, TrunkAlign, TrunkAligner
from lit_moss.modules.trunk_ctc import CtcTotals, TrunkCtc, TrunkCtcHead, labels_of, recorded_labels


class Added(NamedTuple):
    """What is added for a batch.

    Args:
        losses: Weighted, to be added to the cross-entropy.
        count: Labels, places and rows of text that they are of; without any they are 0.
        logged: Values to log.
    """

    losses: list[Tensor]
    count: int
    logged: dict[str, Tensor | int]


class AddedLosses:
    """The losses of a run; none until `build`.

    Args:
        ctc: Option of CTC.
        align: Option of the alignment.
        distill: Option of the distillation of text.

    Raises:
        UserError: if one excludes the other.
    """

    def __init__(self, ctc: TrunkCtc | None, align: TrunkAlign | None, distill: TextDistill | None) -> None:
        for name, other in (("ctc", ctc), ("distill", distill)):
            if align is not None and align.alone and other is not None:
                raise UserError(
                    f"model.align.alone computes the first layers only, model.{name} needs all: set "
                    f"align.alone false, or {name} null"
                )
        self.ctc, self.align, self.distill = ctc, align, distill
        self.head: TrunkCtcHead | None = None
        self.aligner: TrunkAligner | None = None
        self.distiller: TextDistiller | None = None
        self.reset()

    @property
    def layers_run(self) -> int | None:
        """Layers of the trunk that a training step computes; None for the whole model."""
        return self.align.layer if self.align is not None and self.align.alone else None

    @property
    def is_alone(self) -> bool:
        """Whether the alignment is the only loss, `alone`."""
        return self.layers_run is not None and self.aligner is not None

    def build(
        self,
        lm: SplitLM,
        trainer: Trainer,
        stored: dict[str, Any] | None,
        backbone: Callable[[], SplitLM],
        dtype: torch.dtype,
    ) -> None:
        """Makes what the options need.

        Args:
            lm: The model, whose hidden states are kept from here on.
            trainer: With the data that knows the text of speech.
            stored: Labels and weights of the head of the checkpoint that the run starts from.
            backbone: Gives a model with the weights before training, from which alignment and distillation
                copy layers.
            dtype: Of these copies.

        Raises:
            UserError: if the data or the strategy cannot serve them.
        """
        if self.ctc is not None:
            _check_unsharded(trainer, "model.ctc", "its head is")
            lm.keep_hidden = self.ctc.layers(len(lm.trunk.layers))
            if trainer.state.fn == "fit":
                labels = labels_of(self.ctc, contracts.spoken_text_data(trainer, "model.ctc"))
                self.head = TrunkCtcHead(labels, lm.model.embed_tokens.weight.detach())
                if stored and stored["labels"] == labels.record():
                    self.head.load_state_dict(stored["state"])
                    rank_zero_info("model.ctc: its head continues from model.init_from")
            elif stored:
                self.restore_head(lm, trainer, stored)
        before = backbone() if self.align is not None or self.distill is not None else lm
        if self.align is not None:
            _check_unsharded(trainer, "model.align", "its layers are")
            layer, kept = self.align.layers(len(lm.trunk.layers)), lm.keep_hidden
            if kept not in (None, layer):
                raise UserError(
                    f"model.align.layer is {layer}, model.ctc takes the states after layer {kept}: give both "
                    "the same layer"
                )
            if not self.align.alone:
                lm.keep_hidden = layer
            tokenizer = contracts.spoken_text_data(trainer, "model.align").text_tokenizer()
            self.aligner = TrunkAligner(self.align, Teacher(before, layer, dtype), tokenizer)
        if self.distill is not None:
            _check_unsharded(trainer, "model.distill", "its copy of the backbone is")
            if contracts.trains_on_prompts(trainer):
                raise UserError(
                    "model.distill with conversations made with train_on all: replies begin where targets "
                    "do, and here all rows are targets; make them with train_on assistant, or distill null"
                )
            lm.keep_text = True
            self.distiller = TextDistiller(self.distill, TextTeacher(before, dtype))

    def restore_head(self, lm: SplitLM, trainer: Trainer, stored: dict[str, Any]) -> None:
        """Makes the head of a checkpoint; only `fit` reads the training's text, and so its labels.

        Args:
            lm: The model.
            trainer: The trainer; its data has the text tokenizer.
            stored: Labels and weights, see `stored_head`.
        """
        labels = recorded_labels(stored["labels"], contracts.spoken_text_data(trainer, "model.ctc"))
        self.head = TrunkCtcHead(labels, lm.model.embed_tokens.weight.detach())
        self.head.load_state_dict(stored["state"])

    def alone(self, lm: SplitLM, batch: TokenBatch) -> AlignLosses:
        """The alignment of a batch, by the first layers only."""
        assert self.aligner is not None, "is_alone comes first"
        return self.aligner(lm, batch)

    def added(self, lm: SplitLM, batch: TokenBatch, loss: SplitLoss) -> Added:
        """Losses of a batch, each a sum divided by the batch's targets.

        Args:
            lm: The model.
            batch: Rows, and what their speech says.
            loss: The cross-entropy, with the states that the model keeps.
        """
        losses: list[Tensor] = []
        logged: dict[str, Tensor | int] = {}
        count = 0
        targets = (loss.text_count + loss.speech_count).clamp_min(1)
        hidden_BLD = loss.hidden_BLD
        if self.ctc is not None and self.head is not None and hidden_BLD is not None:
            sums = self.head(hidden_BLD, batch.speech_text)
            losses.append(self.ctc.weight * sums.nll / targets)
            count += sums.labels
            logged |= ({"ctc": sums.mean.detach()} if sums.labels else {}) | {"ctc_skipped": sums.skipped}
        if self.aligner is not None:
            aligned = self.aligner(lm, batch, hidden_BLD)
            losses.append(aligned.total * aligned.places / targets)
            count += aligned.places
            logged |= aligned.values()
        if self.distill is not None and self.distiller is not None and loss.text_BLD is not None:
            text = self.distiller(lm, batch, loss.text_BLD)
            losses.append(self.distill.weight * text.nats / targets)
            count += text.rows
            logged |= {"distill": text.nats.detach() / text.rows} if text.rows else {}
        return Added(losses, count, logged)

    def reset(self) -> None:
        """Begins a validation."""
        self._ctc_sums, self._align_sums, self._text_sums = CtcTotals(), AlignTotals(), DistillTotals()

    def validate(self, lm: SplitLM, batch: TokenBatch, loss: SplitLoss | None) -> None:
        """Counts a batch of a validation; arguments as of `added`, without a loss for `is_alone`."""
        hidden_BLD = None if loss is None else loss.hidden_BLD
        if self.head is not None and hidden_BLD is not None:
            self._ctc_sums.add(self.head(hidden_BLD, batch.speech_text, count_errors=True))
        if self.aligner is not None:
            self._align_sums.add(self.aligner(lm, batch, hidden_BLD))
        if self.distiller is not None and loss is not None and loss.text_BLD is not None:
            self._text_sums.add(self.distiller(lm, batch, loss.text_BLD))

    def metrics(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Of the validation, see `CtcTotals`, `AlignTotals` and `DistillTotals`.

        Args:
            over_ranks: Sum of a tensor over all ranks.
        """
        found: dict[str, float] = {}
        if self.head is not None:
            found |= self._ctc_sums.metrics(over_ranks)
        if self.aligner is not None:
            found |= self._align_sums.metrics(over_ranks, self.layers_run is not None)
        if self.distiller is not None:
            found |= self._text_sums.metrics(over_ranks)
        return found


def _check_unsharded(trainer: Trainer, option: str, what: str) -> None:
    if saves_shards(trainer.strategy):
        raise UserError(
            f"{option} with {type(trainer.strategy).__name__}: {what} not sharded, expected one device or "
            "DDP (conf/trainer/ddp.yaml)"
        )
