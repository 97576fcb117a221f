"""Parts of the split model that can be frozen and can have their own learning rates."""

from collections.abc import Container, Mapping
from typing import Any

from torch import nn

from lit_moss.llm import lora
from lit_moss.optimizer_groups import decay_groups

Parts = dict[str, list[tuple[str, nn.Parameter]]]  # part -> its named parameters

# Part -> prefix of its parameters' names inside the model.
PARTS = {
    "text_embedding": "model.embed_tokens.",
    "trunk": "model.shared_block.",
    "text_tail": "model.text_block.",
    "text_norm": "model.text_norm.",
    "text_head": "text_lm_head.",
    "audio_embedding": "model.audio_embed.",
    "audio_tail": "model.audio_block.",
    "audio_norm": "model.audio_norm.",
    "audio_head": "audio_lm_head.",
}
# Parts that `model.lora` adds: the adapters on the layers of a part.
LORA = [f"lora_{part}" for part in lora.BLOCKS]


def named_parts(lm: nn.Module) -> Parts:
    """Part -> its named parameters; each trunk layer is a part (`trunk.0`, `trunk.1` …).

    Adapters are separate parts, which come last: `lora_trunk`, `lora_text_tail`, `lora_audio_tail`.
    """
    parts: Parts = {}
    adapters: Parts = {}
    for name, parameter in lm.named_parameters():
        part = next(part for part, prefix in PARTS.items() if name.startswith(prefix))
        if lora.is_adapter(name):
            adapters.setdefault(f"lora_{part}", []).append((name, parameter))
            continue
        if part == "trunk":
            part = f"trunk.{name.removeprefix(PARTS['trunk'] + 'layers.').split('.')[0]}"
        parts.setdefault(part, []).append((name, parameter))
    return parts | adapters


def optimizer_groups(
    parts: Parts, trained: Container[str], lr: float, lr_factors: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer: two per part, matrices with weight decay and the rest without.

    Args:
        parts: Named parts, as returned by `named_parts`.
        trained: Names of the parameters that train at some step; the others are left out.
        lr: Peak learning rate.
        lr_factors: Part -> factor on the learning rate; `trunk` applies to all its layers.
        weight_decay: Weight decay of the matrices.
    """
    groups = []
    for part, named in parts.items():
        rate = lr * lr_factors.get(part.split(".")[0], 1.0)
        groups += decay_groups(part, [p for name, p in named if name in trained], rate, weight_decay)
    return groups
