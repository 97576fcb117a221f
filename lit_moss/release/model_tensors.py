"""All weights of a language model under the released names, each read on request.

checkpoint        its own tensors, with adapters merged into their weights
left out of it    weights that are never trained: read from the run's `init_from` or its backbone
released folder   its safetensors

lit_moss                             backbone
model.shared_block.layers.I.…        model.layers.I.…
model.{text,audio}_block.layers.I.…  model.layers.(trunk + I).…
model.{text,audio}_norm.…            model.norm.…
text_lm_head.weight                  lm_head.weight, or the embeddings if they are tied
"""

import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_moss.errors import UserError, first_line
from lit_moss.llm import SplitLM, lora, stages
from lit_moss.llm.backbone import resolve_backbone
from lit_moss.llm.config import SplitConfig
from lit_moss.llm.folders import open_tensors, weight_files
from lit_moss.llm.model import resize_table
from lit_moss.release.weights import DTYPES
from lit_moss.runs.checkpoints import checkpoint_of, open_checkpoint
from lit_moss.runs.stored import Stored, StoredTensor

_PREFIX = "lm."  # prefix of the model's weights in a checkpoint
_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "text_lm_head.weight"

Tensors = dict[str, StoredTensor]


class _Reading(Mapping[str, Tensor]):
    """Reads each tensor when it is looked up."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


# --- checkpoints --------------------------------------------------------------------------------------------


def config_of(checkpoint: Stored, source: str) -> SplitConfig:
    """Configuration of a checkpoint's model.

    Raises:
        UserError: if it is not the checkpoint of a language model.
    """
    if "split_config" not in checkpoint.settings:
        raise UserError(f"{source} is no checkpoint of a language model: expected one of a SplitLLM run")
    return SplitConfig.from_dict(checkpoint.settings["split_config"], source)


def checkpoint_tensors(checkpoint: Stored, source: str) -> Tensors:
    """All weights of a checkpoint under the released names.

    Args:
        checkpoint: Checkpoint, as returned by `lit_moss.runs.checkpoints.open_checkpoint`.
        source: Origin of the checkpoint, for error messages.

    Raises:
        UserError: if it belongs to another model, or the weights that it leaves out are no longer available.
    """
    stored = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(_PREFIX)
    }
    names, adapters = lora.separate(stored)
    weights = {name: stored[own] for name, own in names.items()}
    frozen = checkpoint.settings.get("frozen")
    if frozen is not None:
        weights |= _left_out(frozen, config_of(checkpoint, source), source)
    scale = (checkpoint.settings.get("lora") or {}).get("scale", 0.0)
    for name, (a, b) in adapters.items():
        if name not in weights:
            raise UserError(f"{source} has an adapter of {name} but not the weight: it is damaged")
        weights[name] = _sum(weights[name], stored[a], stored[b], scale)
    return weights


def _sum(weight: StoredTensor, a: StoredTensor, b: StoredTensor, scale: float) -> StoredTensor:
    dtype = torch.promote_types(weight.dtype, a.dtype)

    def read() -> Tensor:
        return lora.merged_weight(weight.read(), a.read(), b.read(), scale).to(dtype)

    return StoredTensor(weight.shape, dtype, read)


# --- weights that a checkpoint leaves out -------------------------------------------------------------------


def _left_out(record: dict[str, Any], config: SplitConfig, source: str) -> Tensors:
    """In the data types of the training, and checked against its hash."""
    start = record.get("init_from")
    if start and stages.is_released(Path(start)):
        found = folder_tensors(Path(start))
    elif start:
        path = checkpoint_of(start, "last", end=False)
        if path is None:
            raise UserError(f"frozen weights of {source} are in {start}, which is not there: put it back")
        found = checkpoint_tensors(open_checkpoint(path), str(path))
    else:
        found = _of_backbone(record["backbone"], config, record["names"])
    dtypes = record.get("dtypes", {})
    weights = {
        name: _as(found[name], stages.DTYPES[dtypes[name]] if name in dtypes else found[name].dtype)
        for name in record["names"]
        if name in found
    }
    stages.check_frozen(record, _Reading(weights), source)
    return weights


def _as(tensor: StoredTensor, dtype: torch.dtype) -> StoredTensor:
    return StoredTensor(tensor.shape, dtype, lambda: tensor.read().to(dtype))


def _of_backbone(backbone: str, config: SplitConfig, names: list[str]) -> Tensors:
    """Weights of a backbone; read as a whole if its layers are stored under other names (e.g. experts)."""
    folder = Path(backbone)
    stored = folder_tensors(folder if folder.is_dir() else resolve_backbone(backbone))
    theirs = {name: _backbone_name(name, config, stored) for name in names}
    if all(name in stored for name in theirs.values()) and not config.joint:
        vocab = config.format.text_vocab_size
        return {name: _like_ours(name, stored[other], vocab) for name, other in theirs.items()}
    print(f"{backbone} stores its weights under other names, reading it whole", file=sys.stderr)
    layers, size = config.num_modality_layers, config.format.audio_vocab_size
    lm = SplitLM.from_backbone(backbone, layers, size, config.joint, row_format=config.format)
    return {
        name: StoredTensor(tuple(value.shape), value.dtype, value.clone)
        for name, value in lm.state_dict().items()
        if name in names
    }


def _backbone_name(name: str, config: SplitConfig, stored: Tensors) -> str:
    if name == _HEAD:
        return "lm_head.weight" if "lm_head.weight" in stored else _EMBEDDINGS
    name = re.sub(r"^model\.(?:text|audio)_norm\.", "model.norm.", name)
    match = re.fullmatch(r"model\.(shared|text|audio)_block\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name
    layer = int(match[2]) + (0 if match[1] == "shared" else config.num_shared_layers)
    return f"model.layers.{layer}.{match[3]}"


def _like_ours(name: str, tensor: StoredTensor, vocab_size: int) -> StoredTensor:
    """In float32, in which a backbone is split; tables are resized to the rows of our vocabulary."""
    if name not in (_EMBEDDINGS, _HEAD):
        return _as(tensor, torch.float32)

    def read() -> Tensor:
        return resize_table(tensor.read().float(), vocab_size)

    return StoredTensor((vocab_size, *tensor.shape[1:]), torch.float32, read)


# --- folders ------------------------------------------------------------------------------------------------


def folder_tensors(folder: Path) -> Tensors:
    """Name -> tensor of a folder with safetensors.

    Raises:
        UserError: if a file is missing or damaged, or contains data types other than floats of 16 bits or
            more.
    """
    tensors: Tensors = {}
    for file in weight_files(folder):
        for name, tensor in open_tensors([file]).items():
            if tensor.get_dtype() not in DTYPES:
                raise UserError(
                    f"{folder}: {name} is stored as {tensor.get_dtype()}, expected one of {', '.join(DTYPES)}"
                )
            shape, dtype = tuple(tensor.get_shape()), DTYPES[tensor.get_dtype()]
            tensors[name] = StoredTensor(shape, dtype, partial(_read, file, name))
    return tensors


def _read(file: Path, name: str) -> Tensor:
    # Opened each time: the pages of a mapping count as memory while it exists.
    try:
        opened: Any = safe_open(file, framework="pt", device="cpu")
        with opened:
            return opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({first_line(error)}): get it again") from error
