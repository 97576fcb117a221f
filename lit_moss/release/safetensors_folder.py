"""Tensors of safetensors files, each read when it is asked for."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_moss.errors import UserError
from lit_moss.llm.folders import first_line, open_tensors
from lit_moss.release.weights import DTYPES
from lit_moss.runs.stored import StoredTensor


def folder_tensors(folder: Path, files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Name -> tensor, of all files of a model's folder.

    Args:
        folder: For messages.
        files: Of `lit_moss.llm.folders.weight_files`.

    Raises:
        UserError: if a file is damaged, or holds other dtypes than floats of 16 bits or more.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in open_tensors([file]).items():
            if tensor.get_dtype() not in DTYPES:
                raise UserError(
                    f"{folder}: {name} is stored as {tensor.get_dtype()}, expected one of {', '.join(DTYPES)}"
                )
            shape, dtype = tuple(tensor.get_shape()), DTYPES[tensor.get_dtype()]
            tensors[name] = StoredTensor(shape, dtype, partial(_read, file, name))
    return tensors


def _read(file: Path, name: str) -> Tensor:
    # Opened each time: the pages of a mapping count as memory for as long as it is there.
    try:
        opened: Any = safe_open(file, framework="pt", device="cpu")
        with opened:
            return opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({first_line(error)}): get it again") from error
