"""Model FLOPs of a training step: what the mathematics requires, without recomputation by the implementation.

A matrix with n weights costs 2n FLOPs per row in the forward, 2n for the gradient of its input and 2n for its
own gradient. A frozen matrix has no gradient of its own: 4n instead of 6n. Heads are counted at their own
target rows. Attention is counted over the l (l + 1) / 2 pairs of each causal document, not over the square of
the packed sequence.
"""

from collections.abc import Iterable

from torch import nn

from lit_moss.llm.branches import Network


def matrix_flops(modules: Iterable[nn.Module], backward: bool = True) -> int:
    """FLOPs per row of all linear layers in the modules, given which weights are currently trainable."""
    total = 0
    for module in modules:
        for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
            n = getattr(linear.weight, "ds_numel", linear.weight.numel())  # 0 in a ZeRO-3 shard
            total += 2 * n + (2 * n + 2 * n * linear.weight.requires_grad if backward else 0)
    return total


def attention_flops(lm: Network, document_rows: Iterable[int], layers: int, backward: bool = True) -> int:
    """FLOPs of causal attention (scores and weighted values); the backward costs twice the forward.

    Args:
        lm: The model; provides the head sizes.
        document_rows: Number of rows of each document.
        layers: Number of attention layers.
        backward: Include the backward.
    """
    c = lm.config.backbone
    width = c.num_attention_heads * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    pairs = sum(l * (l + 1) // 2 for l in document_rows)  # noqa: E741 - a length
    return layers * pairs * 4 * width * (3 if backward else 1)


def step_flops(
    lm: Network,
    document_rows: list[int],
    text_targets: int,
    speech_targets: int,
    trunk_layers: int | None = None,
) -> int:
    """Model FLOPs of one training step on packed documents.

    Args:
        lm: The model.
        document_rows: Number of rows of each document.
        text_targets: Number of targets of the text head.
        speech_targets: Number of targets of the speech head.
        trunk_layers: If n, the step computes only the first n trunk layers and no head. None: the whole
            model.
    """
    rows = sum(document_rows)
    if trunk_layers is not None:
        layers = list(lm.trunk.layers)[:trunk_layers]
        return rows * matrix_flops(layers) + attention_flops(lm, document_rows, len(layers))
    total = rows * matrix_flops(lm.blocks())
    total += attention_flops(lm, document_rows, sum(len(b.layers) for b in lm.blocks()))
    total += text_targets * matrix_flops([lm.branch_of("text").head])
    return total + speech_targets * matrix_flops([lm.branch_of("speech").head])
