"""Reads CTranslate2's `model.bin`, the format of Whisper in wheels of the package index, as plain arrays."""

import mmap
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_moss.errors import UserError

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """Reads the variables of a CTranslate2 `model.bin`, version 6, as arrays by name.

    Raises:
        UserError: if the file has another version.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0

        def take(number_format: str) -> int:
            nonlocal at
            (value,) = struct.unpack_from("<" + number_format, data, at)
            at += struct.calcsize(number_format)
            return value

        def text() -> str:
            nonlocal at
            length = take("H")
            value = data[at : at + length].rstrip(b"\0").decode()
            at += length
            return value

        version = take("I")
        if version != 6:
            raise UserError(f"{path} is CTranslate2 binary version {version}, expected 6")
        text()  # spec name
        take("I")  # revision
        variables = {}
        for _ in range(take("I")):
            name = text()
            shape = [take("I") for _ in range(take("B"))]
            dtype = np.dtype(_DTYPES[take("B")])
            size = take("I")
            count = size // dtype.itemsize
            variables[name] = np.frombuffer(data, dtype, count, at).reshape(shape).copy()
            at += size
        return variables


def whisper_encoder_tensors(variables: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Encoder tensors under Whisper's names; CTranslate2 stacks q, k and v, and has zero key biases.

    Raises:
        UserError: if a tensor is quantized.
    """
    tensors = {}

    def floats(name: str) -> Tensor:
        values = variables[name]
        if values.dtype.kind != "f":
            raise UserError(f"{name} is quantized ({values.dtype}): get the model in float16 or float32")
        return torch.from_numpy(values.astype(np.float32))

    def put(ours: str, theirs: str) -> None:
        tensors[ours] = floats(theirs)

    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            put(f"{conv}.{part}", f"encoder/{conv}/{part}")
    layers = {name.split("/")[1] for name in variables if name.startswith("encoder/layer_")} - {"layer_norm"}
    for i in range(len(layers)):
        source, target = f"encoder/layer_{i}", f"layers.{i}"
        for ours, theirs in (("weight", "gamma"), ("bias", "beta")):
            put(f"{target}.self_attn_layer_norm.{ours}", f"{source}/self_attention/layer_norm/{theirs}")
            put(f"{target}.final_layer_norm.{ours}", f"{source}/ffn/layer_norm/{theirs}")
        for part in ("weight", "bias"):
            put(f"{target}.self_attn.out_proj.{part}", f"{source}/self_attention/linear_1/{part}")
            put(f"{target}.fc1.{part}", f"{source}/ffn/linear_0/{part}")
            put(f"{target}.fc2.{part}", f"{source}/ffn/linear_1/{part}")
            stacked = floats(f"{source}/self_attention/linear_0/{part}")
            for letter, values in zip("qkv", stacked.chunk(3), strict=True):
                if (letter, part) != ("k", "bias"):
                    tensors[f"{target}.self_attn.{letter}_proj.{part}"] = values.clone()
    return tensors
