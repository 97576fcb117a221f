"""Auxiliary losses added to the cross-entropy, each optional: CTC, alignment, and distillation of text.

    TokenBatch ─ SplitLM.loss ─┬─ hidden_BLD ─┬─ TrunkCtcHead ─┬─ weight · sum / targets ─ added to the loss
                               │              └─ TrunkAligner ─┤
                               └─ text_BLD ───── TextDistiller ┘

Each is the sum over its labels, positions or rows, divided by the number of targets of the batch, so that
micro-batches and ranks are weighted as in the cross-entropy, see `AccumulationWindow`.
CTC and alignment need the trunk's states after some layer (`SplitLM.keep_hidden`) and the text that the
batch's speech says; distillation needs the outputs of the text tail (`SplitLM.keep_text`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_moss import trainer_access
from lit_moss.data.batches import TokenBatch
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.losses import SplitLoss
from lit_moss.modules.parallel import saves_shards
from lit_moss.modules.teacher import FrozenText
from lit_moss.modules.text_distill import DistillTotals, TextDistill, TextDistiller
from lit_moss.modules.trunk_align import AlignLosses, AlignTotals, TrunkAlign, TrunkAligner
from lit_moss.modules.trunk_ctc import CtcTotals, TrunkCtc, TrunkCtcHead, labels_of, recorded_labels


class AuxiliaryTerms(NamedTuple):
    """Auxiliary losses of a batch.

    Args:
        losses: Weighted losses, to be added to the cross-entropy.
        count: Number of labels, positions and text rows that contribute; if 0, all losses are 0.
        logged: Values to log.
    """

    losses: list[Tensor]
    count: int
    logged: dict[str, Tensor | int]


class AuxiliaryLosses:
    """The auxiliary losses of a run; `build` creates them.

    Args:
        ctc: Options of the CTC loss, or None.
        align: Options of the alignment, or None.
        distill: Options of the distillation of text, or None.

    Raises:
        UserError: if the options exclude each other.
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
        """Number of trunk layers that a training step runs; None: the whole model."""
        return self.align.layer if self.align is not None and self.align.alone else None

    @property
    def only_aligns(self) -> bool:
        """Whether the alignment is the only loss (`align.alone`)."""
        return self.layers_run is not None and self.aligner is not None

    def build(
        self,
        lm: SplitLM,
        trainer: Trainer,
        stored: dict[str, Any] | None,
        backbone: Callable[[], SplitLM],
        dtype: torch.dtype,
    ) -> None:
        """Creates the heads and teachers that the options need.

        Args:
            lm: The model; from here on it keeps the hidden states that the losses need.
            trainer: The run's trainer; its data must provide the text of speech.
            stored: Labels and weights of the CTC head in the checkpoint that the run starts from, or None.
            backbone: Returns a model with the weights before training; alignment and distillation copy its
                layers.
            dtype: Data type of the copied layers.

        Raises:
            UserError: if the data or the strategy does not support a loss.
        """
        if self.ctc is not None:
            _check_unsharded(trainer, "model.ctc", "its head is")
            lm.keep_hidden = self.ctc.layers(len(lm.trunk.layers))
            if trainer.state.fn == "fit":
                labels = labels_of(self.ctc, trainer_access.spoken_text_data(trainer, "model.ctc"))
                self.head = TrunkCtcHead(labels, lm.model.embed_tokens.weight.detach())
                if stored and stored["labels"] == labels.record():
                    self.head.load_state_dict(stored["state"])
                    rank_zero_info("model.ctc: its head continues from model.init_from")
            elif stored:
                self.restore_head(lm, trainer, stored)
        if self.align is not None:
            _check_unsharded(trainer, "model.align", "its layers are")
        if self.distill is not None:
            _check_unsharded(trainer, "model.distill", "its copy of the backbone is")
        teacher: FrozenText | None = None
        if self.align is not None or self.distill is not None:
            only = self.align.layers(len(lm.trunk.layers)) if self.align and self.distill is None else None
            teacher = FrozenText.copy_of(backbone(), dtype, only)
        if self.align is not None and teacher is not None:
            layer, kept = self.align.layers(len(lm.trunk.layers)), lm.keep_hidden
            if kept not in (None, layer):
                raise UserError(
                    f"model.align.layer is {layer}, model.ctc takes the states after layer {kept}: give both "
                    "the same layer"
                )
            if not self.align.alone:
                lm.keep_hidden = layer
            tokenizer = trainer_access.spoken_text_data(trainer, "model.align").text_tokenizer()
            first = teacher if self.distill is None else teacher.first(layer)
            self.aligner = TrunkAligner(self.align, first, tokenizer)
        if self.distill is not None and teacher is not None:
            if trainer_access.trains_on_prompts(trainer):
                raise UserError(
                    "model.distill with conversations made with train_on all: replies begin where targets "
                    "do, and here all rows are targets; make them with train_on assistant, or distill null"
                )
            lm.keep_text = True
            self.distiller = TextDistiller(self.distill, teacher)

    def restore_head(self, lm: SplitLM, trainer: Trainer, stored: dict[str, Any]) -> None:
        """Makes the head of a checkpoint; only `fit` reads the training's text, and so its labels.

        Args:
            lm: The model.
            trainer: The trainer; its data has the text tokenizer.
            stored: Labels and weights, see `stored_head`.
        """
        labels = recorded_labels(stored["labels"], trainer_access.spoken_text_data(trainer, "model.ctc"))
        self.head = TrunkCtcHead(labels, lm.model.embed_tokens.weight.detach())
        self.head.load_state_dict(stored["state"])

    def alignment(self, lm: SplitLM, batch: TokenBatch) -> AlignLosses:
        """Alignment losses of a batch; runs only the first layers."""
        assert self.aligner is not None, "only_aligns comes first"
        return self.aligner(lm, batch)

    def compute(self, lm: SplitLM, batch: TokenBatch, loss: SplitLoss) -> AuxiliaryTerms:
        """Auxiliary losses of a batch, each a sum divided by the number of targets of the batch.

        Args:
            lm: The model.
            batch: Rows, and the text that their speech says.
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
        return AuxiliaryTerms(losses, count, logged)

    def reset(self) -> None:
        """Resets the sums at the start of a validation."""
        self._ctc_sums, self._align_sums, self._text_sums = CtcTotals(), AlignTotals(), DistillTotals()

    def validate(self, lm: SplitLM, batch: TokenBatch, loss: SplitLoss | None) -> None:
        """Adds a validation batch; arguments as in `compute`. `loss` is None if `only_aligns`."""
        hidden_BLD = None if loss is None else loss.hidden_BLD
        if self.head is not None and hidden_BLD is not None:
            self._ctc_sums.add(self.head(hidden_BLD, batch.speech_text, count_errors=True))
        if self.aligner is not None:
            self._align_sums.add(self.aligner(lm, batch, hidden_BLD))
        if self.distiller is not None and loss is not None and loss.text_BLD is not None:
            self._text_sums.add(self.distiller(lm, batch, loss.text_BLD))

    def metrics(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Metrics of the validation, see `CtcTotals`, `AlignTotals` and `DistillTotals`.

        Args:
            over_ranks: Returns the sum of a tensor over all ranks.
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
