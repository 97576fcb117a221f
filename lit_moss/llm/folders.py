"""Folders of Hugging Face models: finds their weight files and checks that they are complete.

Every problem is reported in one line that names the first affected file or tensor.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from lit_moss.errors import UserError, first_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_POINTER = b"version https://git-lfs"
_OTHER_FORMATS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def refuse_pointer(file: Path) -> None:
    """Refuses a Git-LFS pointer: the three-line text file that `git clone` leaves in place of a large file.

    Raises:
        UserError: if the file is a pointer.
    """
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise UserError(
                f"{file} is a Git-LFS pointer, not the file itself: run `git lfs pull` in {file.parent}"
            )


def read_json(file: Path) -> dict[str, Any]:
    """Fields of a JSON file.

    Raises:
        UserError: if it is missing, a Git-LFS pointer, or not a JSON object.
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
        UserError: if there is no config, or transformers does not accept it.
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
    """Safetensors files of a model folder: a single file, or those that an index lists.

    Raises:
        UserError: if there are none, or one is missing or a Git-LFS pointer.
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
    """Names of the files that a weights index lists, without duplicates.

    Raises:
        UserError: if it lists none.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(v, str) for v in listed.values()):
        raise UserError(f"{index} has no weight_map of tensors to files: get it again")
    for name in listed.values():
        if Path(name).name != name:
            raise UserError(f"{index} names the file {name!r}, expected files of its own folder: refused")
    return sorted(set(listed.values()))


def _no_weights(folder: Path) -> UserError:
    if (folder / "adapter_config.json").is_file():
        return UserError(
            f"{folder} holds a PEFT adapter, not a model: merge it into its backbone (`merge_and_unload`, "
            "`save_pretrained`) and give that folder"
        )
    others = sorted(f.name for f in folder.iterdir() if f.suffix in _OTHER_FORMATS)
    more = " …" if len(others) > 3 else ""
    weights = f"found {', '.join(others[:3])}{more}" if others else "no weights at all"
    return UserError(
        f"{folder} has neither {WEIGHTS} nor {INDEX} ({weights}): other formats are not read, and nothing is "
        "unpickled; save the model as safetensors (transformers' `save_pretrained`)"
    )


def open_tensors(files: Iterable[Path]) -> dict[str, Any]:
    """Name -> lazy slice of every tensor; values are read when the slice is indexed (`[...]`).

    Raises:
        UserError: if a file is damaged.
    """
    slices: dict[str, Any] = {}
    for file in files:
        try:
            opened: Any = safe_open(file, framework="pt", device="cpu")
            slices |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged ({first_line(error)}): get it again") from error
    return slices


def refuse_other_dtypes(folder: Path, tensors: dict[str, Any], own: dict[str, torch.Tensor]) -> None:
    """Rejects integer and 8-bit float tensors, which mean nothing without their quantization scales.

    Args:
        folder: The model's folder, for the error message.
        tensors: Stored tensors, as returned by `open_tensors`.
        own: The model's tensors; may be on the meta device.

    Raises:
        UserError: if a floating-point tensor of the model is stored as such a data type.
    """
    for name in sorted(own.keys() & tensors.keys()):
        dtype = tensors[name].get_dtype()
        if own[name].is_floating_point() and dtype not in _FLOATS:
            raise UserError(
                f"{folder}: {name} is stored as {dtype}, expected float32, bfloat16 or float16: give the "
                "model before its quantization"
            )
