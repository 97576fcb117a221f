"""Exports the text path of a split model as a plain text model that transformers loads without lit_moss.

    model.shared_block.layers.i                       ->  model.layers.i
    model.text_block.layers.j                         ->  model.layers.(num_shared_layers + j)
    model.text_norm, text_lm_head                     ->  model.norm, lm_head

It computes the same text logits for rows without speech: to verify an export with independent code, and to
evaluate the text model with other tools.
"""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from lit_moss.errors import UserError
from lit_moss.files import apply_umask, atomic_write
from lit_moss.llm.folders import open_tensors, weight_files
from lit_moss.llm.released import read_split_config

_LAYER = re.compile(r"model\.(shared|text)_block\.layers\.(\d+)\.(.+)")
_OTHERS = {
    "model.embed_tokens.weight": "model.embed_tokens.weight",
    "model.text_norm.weight": "model.norm.weight",
    "text_lm_head.weight": "lm_head.weight",
}


def save_text_model(folder: str | Path, out: str | Path) -> None:
    """Writes the text path of a model folder as a folder of its backbone's type (Qwen3, Llama …).

    Args:
        folder: Folder in the released layout, or hub id.
        out: Folder to create.

    Raises:
        UserError: if `out` exists, or the model is not split.
    """
    from huggingface_hub import save_torch_state_dict

    from lit_moss.llm.backbone import load_text_tokenizer

    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists: give another folder")
    source, config = read_split_config(folder)
    if config.joint:
        raise UserError(f"{folder} has one softmax over text and speech (joint): it has no text path")
    slices = open_tensors(weight_files(source))
    names = {name: _plain_name(name, config.num_shared_layers) for name in slices}
    weights = {plain: slices[name][...] for name, plain in names.items() if plain is not None}
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config.backbone))
    config.backbone.architectures = [kind.__name__]
    config.backbone.dtype = next(iter(weights.values())).dtype
    with atomic_write(out) as partial:
        partial.mkdir()
        config.backbone.save_pretrained(partial)
        save_torch_state_dict(weights, partial)
        apply_umask(partial.glob("*.safetensors"))
        load_text_tokenizer(source).save_pretrained(partial)


def _plain_name(name: str, num_shared_layers: int) -> str | None:
    """Name in a plain text model; None for tensors that are not in the text path."""
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return _OTHERS.get(name)
    number = int(layer[2]) + (num_shared_layers if layer[1] == "text" else 0)
    return f"model.layers.{number}.{layer[3]}"
