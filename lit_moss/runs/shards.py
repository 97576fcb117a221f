"""Checks folders of shards before a strategy resumes from them.

DeepSpeed unpickles its files, and torch's distributed checkpoints unpickle their metadata and everything that
is not a tensor, whatever they contain. Here all of it is first read as data: a folder that contains code is
rejected before it is loaded.
"""

import io
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from lit_moss.errors import UserError
from lit_moss.runs.shard_reader import ShardReader, not_data
from lit_moss.runs.stored import ZERO, parse_file

_METADATA, _LATEST = ".metadata", "latest"


def check_shards(folder: Path) -> None:
    """Rejects a folder of shards that contains anything but data.

    Raises:
        UserError: if a file contains code, or refers to files outside of the folder.
    """
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".pt":
            parse_file(file)
        elif file.name == _LATEST and file.read_text(errors="replace").strip() != ZERO:
            raise UserError(f"{file} names another folder than {ZERO}: take another checkpoint")
    if (folder / _METADATA).exists():
        _check_distributed(folder)


def _check_distributed(folder: Path) -> None:
    metadata = ShardReader(folder).read_metadata()
    try:
        objects = {
            name
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, BytesStorageMetadata)
        }
        for index, place in metadata.storage_data.items():
            file = folder / place.relative_path
            if Path(place.relative_path).name != place.relative_path:
                raise ValueError(f"{index.fqn} is in {place.relative_path}")
            if index.fqn not in objects:
                continue  # a tensor, which torch reads as data
            if place.transform_descriptors:
                raise ValueError(f"{index.fqn} is compressed")
            with file.open("rb") as opened:
                opened.seek(place.offset)
                content = opened.read(place.length)
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive may raise any exception
        raise not_data(folder, error) from error
