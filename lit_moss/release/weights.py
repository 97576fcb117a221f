"""Sharded safetensors, written tensor by tensor.

    8 bytes   length of the header
    header    JSON: name -> dtype, shape, first and last byte; padded with spaces to a multiple of 8 bytes
    data      the concatenated tensors

The header only needs shapes, so it is written first, and memory never holds more than the tensor being
written, in its stored and in its new data type. `safetensors` itself needs all tensors of a file at once. The
resulting bytes are identical (https://huggingface.co/docs/safetensors/index#format).
"""

import functools
import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory

from lit_moss.errors import UserError
from lit_moss.llm.folders import INDEX
from lit_moss.runs.stored import StoredTensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def widest_dtype(tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    """A data type that can represent all tensors without rounding."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))


def check_shard_size(max_shard_size: str) -> None:
    """Rejects a size that is not positive or has no unit.

    Raises:
        UserError: if the size is invalid.
    """
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[KMGT]B\s*", max_shard_size, re.IGNORECASE)
    if size is None or float(size[1]) == 0:
        raise UserError(f"--max-shard-size {max_shard_size!r}, expected such as 5GB or 500MB")


def plan_shards(
    tensors: Mapping[str, StoredTensor], dtype: torch.dtype, max_shard_size: str
) -> StateDictSplit:
    """Assigns tensors to files, by their shapes.

    Args:
        tensors: Name -> tensor.
        dtype: Data type in the files.
        max_shard_size: Maximum size of a file, such as `5GB`; a larger tensor gets its own file.

    Raises:
        UserError: if the size is invalid.
    """
    check_shard_size(max_shard_size)
    sizes = {name: tensor.numel * dtype.itemsize for name, tensor in tensors.items()}
    return split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )


def write_weights(
    folder: Path, tensors: Mapping[str, StoredTensor], dtype: torch.dtype, max_shard_size: str
) -> None:
    """Writes all weight files, and the index if there are several.

    Args:
        folder: An existing folder.
        tensors: Name -> tensor.
        dtype: Data type in the files, to which values are rounded.
        max_shard_size: Maximum size of a file, see `plan_shards`.

    Raises:
        UserError: if a tensor contains NaN or infinities, in its own data type or in `dtype`.
        OSError: if a file cannot be written.
    """
    plan = plan_shards(tensors, dtype, max_shard_size)
    for file, names in plan.filename_to_tensors.items():
        _write_file(folder / file, {name: tensors[name] for name in names}, dtype)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_file(path: Path, tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    names, at = sorted(tensors), 0
    for name in names:
        tensor = tensors[name]
        size = tensor.numel * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            value = tensors[name].read().to(dtype).contiguous()
            if value.numel() and not torch.linalg.vector_norm(value.flatten(), float("inf")).isfinite():
                rounded = "" if dtype == tensors[name].dtype else f" as {dtype}"
                raise UserError(
                    f"{name} holds NaN or infinities{rounded}: take another checkpoint or --dtype"
                )
            file.write(value.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def mean_of(checkpoints: Sequence[Mapping[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """The mean of several checkpoints, per tensor, in float32 or wider, with two tensors in memory at a time.

    Args:
        checkpoints: Name -> tensor of each checkpoint.

    Raises:
        UserError: if the checkpoints differ in names or shapes.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (first, other)]
        if shapes[0] != shapes[1]:
            raise UserError("--average: the checkpoints have different tensors: expected those of one run")

    def of(name: str) -> StoredTensor:
        dtype = torch.promote_types(first[name].dtype, torch.float32)

        def read() -> torch.Tensor:
            mean = first[name].read().to(dtype)
            for count, other in enumerate(checkpoints[1:], 2):
                # A running mean is exact for equal values, and does not need the sum of all.
                mean.lerp_(other[name].read().to(dtype), 1 / count)
            return mean

        return StoredTensor(first[name].shape, dtype, read)

    return {name: of(name) for name in first}
