"""Losses of a run on the trunk's hidden states beside the cross-entropy: CTC and alignment, each an option.

    TokenBatch ─ SplitLM.loss ─ hidden_BLD ─┬─ TrunkCtcHead ─ weight · ctc ─┬─ added to the loss
                                            └─ TrunkAligner ─ align ────────┘

Both need the first layers' states, `SplitLM.keep_hidden`, and what the batch's speech says.
"""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_moss import contracts
from lit_moss.data.batches import TokenBatch
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.modules.parallel import saves_shards
from lit_moss.modules.trunk_align import AlignLosses, AlignTotals, Teacher, TrunkAlign, TrunkAligner
from lit_moss.modules.trunk_ctc import CtcTotals, TrunkCtc, TrunkCtcHead, labels_of


class TrunkLosses:
    """The losses of a run; none until `build`.

    Args:
        ctc: Option of CTC.
        align: Option of the alignment.

    Raises:
        UserError: if one excludes the other.
    """

    def __init__(self, ctc: TrunkCtc | None, align: TrunkAlign | None) -> None:
        if align is not None and align.alone and ctc is not None:
            raise UserError(
                "model.align.alone computes the first layers only, model.ctc needs all: set align.alone "
                "false, or ctc null"
            )
        self.ctc, self.align = ctc, align
        self.head: TrunkCtcHead | None = None
        self.aligner: TrunkAligner | None = None
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
            backbone: Gives a model with the weights before training, from which the alignment copies layers.
            dtype: Of these copies.

        Raises:
            UserError: if the data or the strategy cannot serve them.
        """
        if self.ctc is not None:
            _check_unsharded(trainer, "model.ctc", "its head is")
            lm.keep_hidden = self.ctc.layers(len(lm.trunk.layers))
            labels = labels_of(self.ctc, contracts.spoken_text_data(trainer, "model.ctc"))
            head = TrunkCtcHead(labels, lm.model.embed_tokens.weight.detach())
            if stored and stored["labels"] == labels.record():
                head.load_state_dict(stored["state"])
                rank_zero_info("model.ctc: its head continues from model.init_from")
            self.head = head.train()
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
            self.aligner = TrunkAligner(self.align, Teacher(backbone(), layer, dtype), tokenizer)

    def alone(self, lm: SplitLM, batch: TokenBatch) -> AlignLosses:
        """The alignment of a batch, by the first layers only."""
        assert self.aligner is not None, "is_alone comes first"
        return self.aligner(lm, batch)

    def added(
        self, lm: SplitLM, batch: TokenBatch, hidden_BLD: Tensor | None
    ) -> tuple[list[Tensor], dict[str, Tensor | int]]:
        """Losses of a batch, weighted, to be added to the cross-entropy; and values to log.

        Args:
            lm: The model.
            batch: Rows, and what their speech says.
            hidden_BLD: States of `lm.keep_hidden` layers.
        """
        losses: list[Tensor] = []
        logged: dict[str, Tensor | int] = {}
        if self.ctc is not None and self.head is not None and hidden_BLD is not None:
            sums = self.head(hidden_BLD, batch.speech_text)
            losses.append(self.ctc.weight * sums.mean)
            logged |= ({"ctc": sums.mean.detach()} if sums.labels else {}) | {"ctc_skipped": sums.skipped}
        if self.aligner is not None:
            aligned = self.aligner(lm, batch, hidden_BLD)
            losses.append(aligned.total)
            logged |= aligned.values()
        return losses, logged

    def reset(self) -> None:
        """Begins a validation."""
        self._ctc_sums, self._align_sums = CtcTotals(), AlignTotals()

    def validate(self, lm: SplitLM, batch: TokenBatch, hidden_BLD: Tensor | None) -> None:
        """Counts a batch of a validation; arguments as of `added`."""
        if self.head is not None and hidden_BLD is not None:
            self._ctc_sums.add(self.head(hidden_BLD, batch.speech_text, count_errors=True))
        if self.aligner is not None:
            self._align_sums.add(self.aligner(lm, batch, hidden_BLD))

    def metrics(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Of the validation, see `CtcTotals` and `AlignTotals`.

        Args:
            over_ranks: Sum of a tensor over all ranks.
        """
        found: dict[str, float] = {}
        if self.head is not None:
            found |= self._ctc_sums.metrics(over_ranks)
        if self.aligner is not None:
            found |= self._align_sums.metrics(over_ranks, self.layers_run is not None)
        return found


def _check_unsharded(trainer: Trainer, option: str, what: str) -> None:
    if saves_shards(trainer.strategy):
        raise UserError(
            f"{option} with {type(trainer.strategy).__name__}: {what} not sharded, expected one device or "
            "DDP (conf/trainer/ddp.yaml)"
        )
