"""Parts of a split model: blocks of decoder layers, the rotary embedding, and branches.

A branch computes the logits of the next row from the trunk's output:

    h_BLD ─ block ─ norm ─ head ─ logits_BLV      id v of the head stands for the row `first_row + v`

The split model has two branches, for text and for speech. The model without a split (NF-NoSplit) has one for
both.
Shapes: B sequences, L rows, N target rows, D width, V ids of a head, E width of an attention head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_moss.llm.config import SplitConfig
from lit_moss.llm.losses import Head, HeadLoss
from lit_moss.llm.rows import RowFormat

Modality = Literal["text", "speech"]


class LayerStack(nn.Module):
    """Consecutive decoder layers of the backbone.

    Attributes:
        checkpointing: Recompute each layer in the backward instead of storing its activations.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.checkpointing = False

    def forward(
        self, h_BLD: Tensor, rope: Any, keep: int | None = None, stop: int | None = None, **kwargs: Any
    ) -> Any:
        """Runs the layers: (B, L, D) -> (B, L, D).

        Args:
            h_BLD: Hidden states (B, L, D).
            rope: Cosines and sines of the positions, (B, L, E) each.
            keep: If n, also return the hidden states after the first n layers.
            stop: If n, run only the first n layers.
            **kwargs: Passed to each layer.
        """
        kept_BLD = h_BLD
        for number, layer in enumerate(islice(self.layers, stop), start=1):
            if self.checkpointing and self.training and torch.is_grad_enabled():
                output: Any = checkpoint(
                    layer, h_BLD, position_embeddings=rope, use_reentrant=False, **kwargs
                )
                h_BLD = output
            else:
                h_BLD = layer(h_BLD, position_embeddings=rope, **kwargs)
            if number == keep:
                kept_BLD = h_BLD
        return h_BLD if keep is None else (h_BLD, kept_BLD)


class Rotary(nn.Module):
    """transformers' rotary embedding; its frequencies stay in float32 when the weights are cast.

    In bfloat16 the phase at row 14,335 would be off by up to 16 radians (Qwen3, theta 1e6).
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def _apply(self, fn: Any, recurse: bool = True) -> "Rotary":
        buffers = dict(self.inner.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in list(self.inner.named_buffers()):
            if moved.dtype != buffers[name].dtype and not buffers[name].is_meta:
                setattr(self.inner, name, buffers[name].to(moved.device))
        return self

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (B, L, E) each, of positions (B, L), in the data type of x."""
        return self.inner(x, position_ids=position_ids)


@dataclass(frozen=True, eq=False)
class Branch:
    """A view of the modules that predict rows of one modality, or of both.

    Args:
        predicts: Modalities of the rows that the head predicts.
        block: Layers that follow the trunk.
        norm: Norm after the last layer.
        head: Projection to logits.
        first_row: The row that id 0 of the head stands for.
    """

    predicts: tuple[Modality, ...]
    block: LayerStack
    norm: nn.Module
    head: Head
    first_row: int

    @property
    def name(self) -> Modality:
        """The first modality in `predicts`."""
        return self.predicts[0]

    def logits(self, h_BLD: Tensor, **kwargs: Any) -> Tensor:
        """(B, L, D) -> (B, L, V); keyword arguments are passed to `LayerStack`."""
        return self.head(self.norm(self.block(h_BLD, **kwargs)))

    def loss(self, hidden_ND: Tensor, rows_N: Tensor) -> HeadLoss:
        """Cross-entropy of block outputs (N, D) against the rows (N,) that follow them."""
        ids_N = rows_N - self.first_row if self.first_row else rows_N
        return self.head(self.norm(hidden_ND), ids_N)


class Network(Protocol):
    """The interface of a split model that generation and evaluation use; `SplitLM` implements it.

    Attributes:
        config: Sizes and ids.
        format: The row format: ids of text and speech.
        stop_ids: Text ids that end generation.
        training: True in training mode.
    """

    config: SplitConfig
    format: RowFormat
    stop_ids: list[int]
    training: bool

    @property
    def trunk(self) -> LayerStack: ...

    @property
    def rotary(self) -> Rotary: ...

    @property
    def branches(self) -> tuple[Branch, ...]: ...

    def branch_of(self, modality: Modality) -> Branch: ...

    def blocks(self) -> Iterator[LayerStack]: ...

    def embed(self, rows_BL: Tensor) -> Tensor: ...

    def check_context(self, rows: int) -> None: ...

    def loss(
        self, rows: Tensor, document_ids: Tensor | None = None, loss_mask: Tensor | None = None
    ) -> Any: ...

    def generate(self, rows: Any, modality: Modality | None = None, **options: Any) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def __call__(self, rows: Tensor, document_ids: Tensor | None = None) -> Any: ...
