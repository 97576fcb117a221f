"""The unmodified backbone's text path, frozen: what alignment and distillation compare a model's states with.

text ids ─ embedding ─ layer 1 … n ─ states ─ norm of the next layer, or of the text head
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_moss.devices import autocast_dtype
from lit_moss.llm import SplitLM
from lit_moss.llm.attention import Segments
from lit_moss.llm.branches import LayerStack, Rotary


class FrozenText(nn.Module):
    """The first layers of a text path.

    It belongs to no other module: checkpoints, optimizers and reducers do not include it.

    Args:
        embed_tokens: Embedding of text ids.
        layers: The layers.
        rotary: Rotation of positions.
        norm: Norm that follows the layers: of the next layer, or of the head.
        head: The text head; None: left out.
    """

    def __init__(
        self,
        embed_tokens: nn.Module,
        layers: Sequence[nn.Module],
        rotary: Rotary,
        norm: nn.Module,
        head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.embed_tokens, self.block, self.rotary = embed_tokens, LayerStack(layers), rotary
        self.norm, self.head = norm, head

    @classmethod
    def copy_of(cls, lm: SplitLM, dtype: torch.dtype, layers: int | None = None) -> "FrozenText":
        """A frozen copy.

        Args:
            lm: A split model with the backbone's weights.
            dtype: Data type of the copied weights.
            layers: Number of layers; None: all, and the head.
        """
        text = lm.branch_of("text")
        path = cls(
            lm.model.embed_tokens,
            [*lm.trunk.layers, *text.block.layers],
            Rotary(lm.rotary.inner),
            text.norm,
            text.head,
        )
        own = copy.deepcopy(path if layers is None else path.first(layers))
        return own.to(dtype).requires_grad_(False).eval()

    def first(self, layers: int) -> "FrozenText":
        """The first layers, with the same weights, without the head."""
        after = list(self.block.layers)[layers:]
        norm = getattr(after[0], "input_layernorm", nn.Identity()) if after else self.norm
        return FrozenText(self.embed_tokens, list(self.block.layers)[:layers], self.rotary, norm)

    @torch.no_grad()
    def forward(
        self, rows_1R: Tensor, document_ids_1R: Tensor, borders: list[list[int]] | None = None
    ) -> Tensor:
        """Text rows of several documents -> states after the layers.

        Args:
            rows_1R: Text ids (1, R).
            document_ids_1R: Number of each row's document, (1, R).
            borders: See `Segments`; None: read from the device.

        Returns:
            States (1, R, D).
        """
        h = self.embed_tokens(rows_1R)
        segments = Segments.of(document_ids_1R, "auto", autocast_dtype(h.device) or h.dtype, borders)
        return self.block(h, rope=self.rotary(h, position_ids=segments.positions_BL), segments=segments)

    def normed(self, h: Tensor) -> Tensor:
        """States (…, D) -> the normalised input of the next layer, float32."""
        with torch.autocast(h.device.type, enabled=False):
            return self.norm(h.float()).float()
