"""Model folders: which files hold the weights, whether they are whole, and how they get into a backbone.

Whatever is wrong with a folder is one line that names the first file or tensor. A tensor that is missing
would otherwise start as random numbers, under a warning of a library.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from lit_moss.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_POINTER = b"version https://git-lfs"
_OTHER_FORMATS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def refuse_pointer(file: Path) -> None:
    """A file that `git clone` left as a Git-LFS pointer is text of three lines.

    Raises:
        UserError: if it is one.
    """
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise UserError(
                f"{file} is a Git-LFS pointer, not the file itself: run `git lfs pull` in {file.parent}"
            )


def read_json(file: Path) -> dict[str, Any]:
    """Fields of a JSON file.

    Raises:
        UserError: if it is missing, a Git-LFS pointer, or no JSON object.
    """
    if not file.is_file():
        raise UserError(f"no {file}: expected a folder of a Hugging Face model, with its {file.name}")
    refuse_pointer(file)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({first_line(error)}): get it again") from error
    if not isinstance(fields, dict):
        raise UserError(f"{file} holds a {type(fields).__name__}, expected an object: get it again")
    return fields


def read_config(folder: Path) -> PretrainedConfig:
    """transformers' config of a backbone.

    Raises:
        UserError: if there is none, or transformers does not accept it.
    """
    file = folder / "config.json"
    fields = read_json(file)
    if fields.get("quantization_config"):
        raise UserError(
            f"{file} describes quantized weights: expected a backbone in float32, bfloat16 or float16"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{file} (model_type {fields.get('model_type')!r}) is not accepted by transformers "
            f"({first_line(error)}): expected the config of a text model, such as Qwen3, Qwen2 or Llama"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Safetensors of a model's folder, all of them there: one file, or those that an index names.

    Raises:
        UserError: if there are none, one is missing, or is a Git-LFS pointer.
    """
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not (folder / INDEX).is_file():
            raise _no_weights(folder)
        names = shards(folder / INDEX)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of its {len(names)} weight files, first {missing[0]}: get them "
            "again"
        )
    for name in names:
        refuse_pointer(folder / name)
    return [folder / name for name in names]


def shards(index: Path) -> list[str]:
    """Names of the files that an index of weights lists, each once.

    Raises:
        UserError: if it lists none.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(v, str) for v in listed.values()):
        raise UserError(f"{index} has no weight_map of tensors to files: get it again")
    return sorted(set(listed.values()))


def _no_weights(folder: Path) -> UserError:
    if (folder / "adapter_config.json").is_file():
        return UserError(
            f"{folder} holds a PEFT adapter, not a model: merge it into its backbone (`merge_and_unload`, "
            "`save_pretrained`) and give that folder"
        )
    others = sorted(f.name for f in folder.iterdir() if f.suffix in _OTHER_FORMATS)
    found = (
        f"found {', '.join(others[:3])}{' …' if len(others) > 3 else ''}" if others else "no weights at all"
    )
    return UserError(
        f"{folder} has neither {WEIGHTS} nor {INDEX} ({found}): other formats are not read, and nothing is "
        "unpickled; save the model as safetensors (transformers' `save_pretrained`)"
    )


def open_tensors(files: Iterable[Path]) -> dict[str, Any]:
    """Name -> slice of every tensor; nothing is read before the slice is (`[:]`, `get_shape()`).

    Raises:
        UserError: if a file is damaged.
    """
    found: dict[str, Any] = {}
    for file in files:
        try:
            opened: Any = safe_open(file, framework="pt", device="cpu")
            found |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged ({first_line(error)}): get it again") from error
    return found


def refuse_other_dtypes(folder: Path, tensors: dict[str, Any], own: dict[str, torch.Tensor]) -> None:
    """Whole numbers and 8-bit floats mean nothing without the scales that a quantization puts beside them.

    Args:
        folder: For the message.
        tensors: Of `open_tensors`.
        own: The model's, also on the meta device.

    Raises:
        UserError: if a tensor that the model has as floats is stored otherwise.
    """
    for name in sorted(own.keys() & tensors.keys()):
        dtype = tensors[name].get_dtype()
        if own[name].is_floating_point() and dtype not in _FLOATS:
            raise UserError(
                f"{folder}: {name} is stored as {dtype}, expected float32, bfloat16 or float16: give the "
                "model before its quantization"
            )


def load_backbone(folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> nn.Module:
    """A backbone with a folder's weights, on the CPU.

    transformers' `from_pretrained` takes a device context, such as Lightning's, for a device map, which needs
    accelerate, and starts missing tensors at random. So the model is made on the meta device, and the tensors
    are put into it by the functions that `from_pretrained` uses: they know which kinds keep them otherwise on
    disk (experts one by one, fused projections).

    Args:
        folder: With safetensors.
        config: Its config.
        dtype: Of the weights.

    Raises:
        UserError: if a tensor is missing, has another shape, or has no place in the model.
    """
    from transformers import initialization
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    tensors = open_tensors(weight_files(folder))
    with torch.device("cpu"):
        contexts = initialization.no_init_weights(), initialization.no_tie_weights(), torch.device("meta")
        with contexts[0], contexts[1], contexts[2]:
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        refuse_other_dtypes(folder, tensors, model.state_dict())
        conversions: Any = get_model_conversion_mapping(model)
        loading = LoadStateDictConfig(
            dtype=dtype,
            dtype_plan=model._get_dtype_plan(dtype),
            weight_mapping=conversions,
            ignore_mismatched_sizes=True,  # ours to refuse
        )
        info, _ = convert_and_load_state_dict_in_model(model=model, state_dict=tensors, load_config=loading)
        _refuse_misfits(folder, model, info)
        info.unexpected_keys.clear()  # no report of what is beside the model
        model._finalize_model_loading(model, loading, info)
        for parameter in model.parameters():
            # A fused projection that was cut apart: pieces of one tensor cannot be saved.
            if parameter.untyped_storage().nbytes() > parameter.nbytes:
                parameter.data = parameter.data.clone()
    return model


def fill_buffers(model: nn.Module, config: PretrainedConfig) -> None:
    """Computes the buffers that no file holds and that are still on the meta device, such as Gemma's scale of
    embeddings, as transformers does for a model that it reads.

    Raises:
        UserError: if transformers gives a buffer no value.
    """
    with torch.device("meta"):
        owner: Any = AutoModelForCausalLM.from_config(config)
    for module in model.modules():
        lost = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in lost:
            module._buffers[name] = torch.full_like(module.get_buffer(name), float("nan"), device="cpu")
        if lost:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = True  # pyright: ignore - read already
            owner._init_weights(module)
        for name in lost:
            if not bool(module.get_buffer(name).isfinite().all()):
                raise UserError(
                    f"{config.model_type} has a buffer {name} whose value is in no file: give another "
                    "backbone"
                )


def _refuse_misfits(folder: Path, model: Any, info: Any) -> None:
    tied = dict(model.all_tied_weights_keys)
    there = model.state_dict().keys() - info.missing_keys
    missing = {
        name
        for name in info.missing_keys
        if tied.get(name) not in there
        and not any(name == kept and other in there for other, kept in tied.items())
    }
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq$"]
    # Tensors beside the model, such as a reward model's head, change nothing; a bias or an adapter inside it
    # does.
    parts = {name for name, _ in model.named_children()}
    unknown = {
        name
        for name in info.unexpected_keys
        if name.split(".")[0] in parts and not any(re.search(pattern, name) for pattern in ignored)
    }
    ignored_missing = model._keys_to_ignore_on_load_missing or ()
    missing = {n for n in missing if not any(re.search(pattern, n) for pattern in ignored_missing)}
    advice = "give the folder of a whole model whose config.json belongs to its weights"
    if info.mismatched_keys:
        name, got, expected = min(info.mismatched_keys)
        raise UserError(
            f"{folder}: {name} is {tuple(got)}, config.json expects {tuple(expected)} "
            f"({len(info.mismatched_keys)} tensors of other shapes): {advice}"
        )
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(model.state_dict())} tensors, first {_first(missing)}"
            f"{_other_prefix(missing, info.unexpected_keys)}: {advice}"
        )
    if info.conversion_errors:
        name, error = min(info.conversion_errors.items())
        raise UserError(f"{folder}: {name} cannot be read ({first_line(error)}): {advice}")
    if unknown:
        raise UserError(
            f"{folder} has {len(unknown)} tensors that its model does not have, first {_first(unknown)}: "
            f"{advice}"
        )


def _other_prefix(missing: set[str], found: set[str]) -> str:
    """What stands before the names in the folder, e.g. PEFT's `base_model.model.`."""
    for name in sorted(missing):
        for other in sorted(found):
            if other.endswith("." + name):
                return f" (found as {other})"
    return ""


def _first(names: set[str]) -> str:
    """The first in the order of a reader: layer 2 before layer 10."""
    return min(names, key=lambda n: [(int(p), "") if p.isdigit() else (-1, p) for p in n.split(".")])


def first_line(error: object) -> str:
    """What an error says, in short."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
