"""Reads the metadata of `torch.distributed.checkpoint` as data only."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from typing_extensions import override

from lit_moss.errors import UserError


def not_data(path: Path, error: BaseException) -> UserError:
    """The error for a file that contains code or is damaged."""
    return UserError(
        f"{path} cannot be read as data ({type(error).__name__}); files that hold code are not opened: "
        "expected a checkpoint written by `fit`"
    )


class _MetadataUnpickler(pickle.Unpickler):
    """Only accepts the classes that the metadata of `torch.distributed.checkpoint` needs."""

    _CLASSES = frozenset(
        {
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
            ("pathlib", "PurePosixPath"),
            ("pathlib", "WindowsPath"),
            ("torch", "Size"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.serialization", "_get_layout"),
            *(
                ("torch.distributed.checkpoint.metadata", name)
                for name in ("Metadata", "MetadataIndex", "StorageMeta", "ChunkStorageMetadata",
                             "BytesStorageMetadata", "TensorStorageMetadata", "TensorProperties",
                             "_MEM_FORMAT_ENCODING")
            ),
        }
    )  # fmt: skip

    @override
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        is_dtype = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        if is_dtype or (module_name, global_name) in self._CLASSES:
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is no part of a checkpoint")


class ShardReader(FileSystemReader):
    """Reader of shards: torch's unpickles any class, and reads the metadata again for each tensor."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        try:
            with (folder / ".metadata").open("rb") as file:
                self._metadata = _MetadataUnpickler(file).load()
            self._metadata.storage_meta = None
        except Exception as error:
            raise not_data(folder / ".metadata", error) from error

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        return self._metadata
