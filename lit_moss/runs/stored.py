"""Tensors of a checkpoint by name; each is read on request.

    one file      `torch.save`, as Lightning writes it
    DeepSpeed     ZeRO-1 and 2: the joined partitions of all ranks are the concatenated weights of a group
                  ZeRO-3: every weight is cut into equal parts, one per rank; a rank's parts are concatenated
    FSDP2         `torch.distributed.checkpoint`

Files are parsed without reading tensor data: under `FakeTensorMode`, `torch.load` only reports where in the
file a storage begins (https://docs.pytorch.org/docs/stable/notes/serialization.html). Reading a tensor then
reads its bytes from there, so memory holds only the tensors in use, and no mapped pages. Pickles may only
import plain containers of torch: files that contain code are rejected.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards

from lit_moss.errors import UserError
from lit_moss.runs.shard_reader import ShardReader, not_data

ZERO = "checkpoint"  # folder of DeepSpeed's files within a checkpoint
_FSDP_PREFIX, _ZERO_PREFIX = "state_dict.", "_forward_module."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk.

    Args:
        shape: Shape of the tensor.
        dtype: Data type of the tensor.
        read: Reads the tensor; the result is contiguous and on the CPU.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Stored:
    """A checkpoint on disk.

    Args:
        tensors: Name in the checkpoint's `state_dict` -> tensor.
        settings: All other content that is plain data, without tensors.
    """

    tensors: dict[str, StoredTensor]
    settings: dict[str, Any]


def open_file(path: Path) -> Stored:
    """Opens a checkpoint that is a single file.

    Raises:
        UserError: if it cannot be read as data, or has no `state_dict`.
    """
    checkpoint = parse_file(path)
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, Mapping):
        raise UserError(f"{path} has no state_dict: expected a checkpoint written by `fit`")
    return Stored(_tensors(path, weights), _plain(checkpoint))


def open_folder(folder: Path) -> Stored:
    """Opens a checkpoint folder written by the ranks of FSDP2 or DeepSpeed.

    Raises:
        UserError: if it cannot be read as data, or a file is missing.
    """
    if (folder / ZERO).is_dir():
        return _open_zero(folder / ZERO)
    meta = folder / "meta.pt"
    return Stored(_open_fsdp(folder), _plain(parse_file(meta)) if meta.is_file() else {})


# --- files of torch.save ------------------------------------------------------------------------------------


class _Ignored:
    """Replaces DeepSpeed's own classes in its files."""

    def __new__(cls, *_: Any) -> "_Ignored":
        return object.__new__(cls)


_DEEPSPEED_CLASSES: list[Any] = [
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Ignored, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Ignored, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Ignored, "deepspeed.utils.tensor_fragment.fragment_address"),
]


def parse_file(path: Path) -> dict[str, Any]:
    """Content of a file written by `torch.save`; its tensors contain no data.

    Raises:
        UserError: if it cannot be read as data.
    """
    try:
        with FakeTensorMode(), torch.serialization.safe_globals(_DEEPSPEED_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(type(content).__name__)
    except Exception as error:  # a damaged archive may raise any exception
        raise not_data(path, error) from error
    return content


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(x) for x in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(x) for x in value)
    return value is None or isinstance(value, str | int | float | bool)


@dataclass(frozen=True)
class _Span:
    """Consecutive elements in a file.

    Args:
        file: Path of the file.
        offset: Offset of the first element, in bytes.
        dtype: Data type of the elements.
        count: Number of elements.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    count: int

    @classmethod
    def of(cls, file: Path, tensor: Tensor) -> "_Span":
        """The location of a contiguous tensor from `parse_file`."""
        assert tensor.is_contiguous()
        offset = _start(tensor) + int(tensor.storage_offset()) * tensor.itemsize
        return cls(file, offset, tensor.dtype, tensor.numel())

    def part(self, start: int, count: int) -> "_Span":
        """`count` elements from index `start` on."""
        return replace(self, offset=self.offset + start * self.dtype.itemsize, count=count)

    def read_into(self, out_N: Tensor) -> None:
        """Reads the elements into a tensor of the same data type."""
        into = out_N.view(torch.uint8).numpy().data
        with self.file.open("rb", buffering=0) as opened:
            opened.seek(self.offset)
            while into:
                size = opened.readinto(into)  # at most 2 GB per call
                if not size:
                    raise UserError(f"{self.file} ends too early: it is damaged, take another checkpoint")
                into = into[size:]


def _start(tensor: Tensor) -> int:
    """Offset in the file at which a tensor's storage begins, in bytes."""
    start = tensor.untyped_storage()._checkpoint_offset
    if start is None:
        raise ValueError("a tensor without a place in its file")  # torch's format before 1.6
    return start


def _joined(spans: Sequence[_Span], shape: Iterable[int]) -> StoredTensor:
    """A tensor whose elements are the concatenation of several spans."""
    shape, dtype = tuple(shape), spans[0].dtype

    def read() -> Tensor:
        out_N = torch.empty(sum(span.count for span in spans), dtype=dtype)
        at = 0
        for span in spans:
            span.read_into(out_N[at : at + span.count])
            at += span.count
        return out_N.view(shape)

    return StoredTensor(shape, dtype, read)


def _stored(file: Path, tensor: Tensor) -> StoredTensor:
    if tensor.is_contiguous():
        return _joined([_Span.of(file, tensor)], tensor.shape)
    count = tensor.untyped_storage().nbytes() // tensor.itemsize
    whole = _joined([_Span(file, _start(tensor), tensor.dtype, count)], [count])
    place = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    return StoredTensor(place[0], tensor.dtype, lambda: whole.read().as_strided(*place).contiguous())


def _tensors(file: Path, weights: Mapping[str, Any]) -> dict[str, StoredTensor]:
    return {name: _stored(file, value) for name, value in weights.items() if isinstance(value, Tensor)}


# --- DeepSpeed ----------------------------------------------------------------------------------------------


def _open_zero(folder: Path) -> Stored:
    """Float32 weights of DeepSpeed's optimizer; the layout is that of `deepspeed.utils.zero_to_fp32`."""
    model_files = _files_of_ranks(folder, "*_model_states.pt")
    optim_files = _files_of_ranks(folder, "*_optim_states.pt")
    states = [parse_file(file) for file in model_files]
    try:
        optimizers = [parse_file(file)["optimizer_state_dict"] for file in optim_files]
        _check_ranks(folder, optimizers)
        first, stage = states[0], optimizers[0]["zero_stage"]
        tensors = _tensors(model_files[0], {name: first["module"][name] for name in first["buffer_names"]})
        for name, shape in (first.get("frozen_param_shapes") or {}).items():
            fragments = [
                _Span.of(file, state["frozen_param_fragments"][name])
                for file, state in zip(model_files, states, strict=True)
            ]
            tensors[name] = _joined(_between(fragments, 0, math.prod(shape)), shape)
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        groups = [
            [_Span.of(file, flat) for flat in optimizer[key]]
            for file, optimizer in zip(optim_files, optimizers, strict=True)
        ]
        if stage == 3:
            tensors |= _cut_weights(first["param_shapes"], groups)
        else:
            paddings = optimizers[0].get("param_alignment_paddings")
            tensors |= _cut_groups(first["param_shapes"], groups, paddings)
            # ZeRO-1 stores weights that are never trained only next to the compute copies of all others.
            tensors = _tensors(model_files[0], first["module"]) | tensors
        tensors |= {name: tensors[kept] for name, kept in first["shared_params"].items() if kept in tensors}
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise not_data(folder, error) from error
    return Stored({n.removeprefix(_ZERO_PREFIX): t for n, t in tensors.items()}, _plain(first))


def _check_ranks(folder: Path, optimizers: Sequence[Mapping[str, Any]]) -> None:
    ranks = optimizers[0]["partition_count"]
    ranks = max(ranks) if isinstance(ranks, list) else ranks
    if ranks != len(optimizers):
        raise UserError(
            f"{folder} has optimizer states of {len(optimizers)} ranks, expected {ranks}: a rank did not "
            "save, take another checkpoint"
        )


def _files_of_ranks(folder: Path, pattern: str) -> list[Path]:
    """Files in the order of ranks: rank 10 after rank 9."""
    files = sorted(folder.glob(pattern), key=lambda file: (len(file.name), file.name))
    if not files:
        raise UserError(f"{folder} has no {pattern}: it is damaged, take another checkpoint")
    return files


def _cut_groups(
    shapes: Sequence[Mapping[str, torch.Size]],
    groups: Sequence[Sequence[_Span]],
    paddings: Sequence[Sequence[int]] | None,
) -> dict[str, StoredTensor]:
    """ZeRO-1 and 2: the weights of a group are concatenated across the joined partitions of the ranks.

    Args:
        shapes: Name -> shape, one mapping per group.
        groups: Partition of each rank for each group.
        paddings: Number of padding elements after each weight of each group.
    """
    tensors: dict[str, StoredTensor] = {}
    for number, of_group in enumerate(shapes):
        partitions, at = [of_rank[number] for of_rank in groups], 0
        for i, (name, shape) in enumerate(of_group.items()):
            count = math.prod(shape)
            tensors[name] = _joined(_between(partitions, at, at + count), shape)
            at += count + (paddings[number][i] if paddings else 0)
    return tensors


def _cut_weights(
    shapes: Sequence[Mapping[str, torch.Size]], groups: Sequence[Sequence[_Span]]
) -> dict[str, StoredTensor]:
    """ZeRO-3: each rank has an equal part of each weight, at the same offset within its groups."""
    tensors: dict[str, StoredTensor] = {}
    ranks, at = len(groups), 0
    for name, shape in (item for of_group in shapes for item in of_group.items()):
        count = math.prod(shape)
        size = -(-count // ranks)
        spans: list[_Span] = []
        for rank, flats in enumerate(groups):
            spans += _between(flats, at, at + max(0, min(size, count - rank * size)))
        tensors[name] = _joined(spans, shape)
        at += size
    return tensors


def _between(spans: Sequence[_Span], start: int, end: int) -> list[_Span]:
    """Elements `start` to `end` of concatenated spans."""
    ends = list(accumulate(span.count for span in spans))
    if end > ends[-1]:
        raise ValueError(f"numbers {start} to {end} of {ends[-1]}")
    parts: list[_Span] = []
    for span, stop in zip(spans, ends, strict=True):
        first, last = max(start, stop - span.count), min(end, stop)
        if first < last:
            parts.append(span.part(first - (stop - span.count), last - first))
    return parts or [spans[0].part(0, 0)]


# --- FSDP2 --------------------------------------------------------------------------------------------------


def _open_fsdp(folder: Path) -> dict[str, StoredTensor]:
    reader = ShardReader(folder)

    def reading(name: str, entry: TensorStorageMetadata) -> Callable[[], Tensor]:
        def read() -> Tensor:
            value = torch.empty(entry.size, dtype=entry.properties.dtype)
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as intended
                    load_shards({name: value}, storage_reader=reader, no_dist=True)
            except (Exception, CheckpointException) as error:  # CheckpointException is not an Exception
                raise not_data(folder, error) from error
            return value

        return read

    return {
        name.removeprefix(_FSDP_PREFIX): StoredTensor(
            tuple(entry.size), entry.properties.dtype, reading(name, entry)
        )
        for name, entry in (reader.read_metadata().state_dict_metadata or {}).items()
        if name.startswith(_FSDP_PREFIX) and isinstance(entry, TensorStorageMetadata)
    }
