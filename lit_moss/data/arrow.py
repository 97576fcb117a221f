"""The Arrow copy of a folder of token documents: written once per node, then opened by every process.

    shards.parquet ── sha256 of each ── damaged shards ──┐   stored by path, sizes and mtimes of the shards
                                                         └── documents.arrow, lengths.npy   stored by content

The first process does both while the others wait; later starts compare only sizes and modification times of
the shards. A copy is written atomically; folders with the same content share one.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.utilities import rank_zero_info

from lit_moss.assets import cache_dir, sha256_of
from lit_moss.data.once import cache_errors, say_waiting
from lit_moss.files import make_once

VERSION = 1  # version of the copy's layout
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "rows": pa.list_(pa.int32()),
        "loss_mask": pa.list_(pa.bool_()),
        "kind": pa.string(),
        "lang": pa.string(),
        "speech_sec": pa.float32(),
    }
)
# The text of each stretch of speech, in documents made with `speech_text`: rows `first` to `stop`, text ids.
SPEECH_TEXT = pa.field(
    "speech_text",
    pa.list_(pa.struct({"first": pa.int32(), "stop": pa.int32(), "ids": pa.list_(pa.int32())})),
)
Shards = Sequence[tuple[str, int, str]]  # name, number of documents, sha256


@dataclass(frozen=True)
class ArrowCopy:
    """The documents as training reads them.

    Args:
        table: `datasets.Dataset` of all readable documents, memory-mapped.
        lengths: Number of rows of each document, int64 (documents,), memory-mapped.
        speech_sec: Seconds of speech in all documents.
    """

    table: Any
    lengths: np.ndarray
    speech_sec: float


def damaged_shards(folder: Path, shards: Shards) -> dict[str, str]:
    """Name of each damaged or missing shard -> reason; cached by the shards' sizes and times."""

    def check(out: Path) -> None:
        rank_zero_info(f"{folder}: checking {len(shards)} shards, once on this machine")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the GIL
            reasons = list(pool.map(lambda s: _damage(folder / s[0], s[2]), shards))
        damaged = {s[0]: why for s, why in zip(shards, reasons, strict=True) if why is not None}
        out.write_text(json.dumps(damaged))

    key = _key(str(folder.absolute()), shards, _stamps(folder, shards))
    stored = cache_dir() / "arrow" / "checked" / f"{key}.json"
    with cache_errors():
        make_once(stored, check, lambda path: _read_json(path) is not None, say_waiting)
        return json.loads(stored.read_text())


def schema_of(speech_text: bool) -> pa.Schema:
    """Columns of documents, with or without the text of their speech."""
    return SCHEMA.append(SPEECH_TEXT) if speech_text else SCHEMA


def arrow_copy(folder: Path, shards: Shards, speech_text: bool = False) -> ArrowCopy:
    """The Arrow copy of these shards; it is made if it does not exist yet."""

    def copy(out: Path) -> None:
        rank_zero_info(f"{folder}: copying {len(shards)} shards to {stored}, once on this machine")
        _write_copy(folder, shards, out, schema_of(speech_text))

    stored = cache_dir() / "arrow" / f"documents-{_key([sha256 for *_, sha256 in shards])}"
    with cache_errors():
        make_once(stored, copy, _is_whole, say_waiting)
    counts = json.loads((stored / "counts.json").read_text())
    lengths = np.load(stored / "lengths.npy", mmap_mode="r")
    return ArrowCopy(_open(stored / "documents.arrow"), lengths, counts["speech_sec"])


def _write_copy(folder: Path, shards: Shards, out: Path, schema: pa.Schema) -> None:
    """Writes the copy into a new folder, shard by shard."""
    out.mkdir()
    lengths, speech_sec = [], 0.0
    with pa.OSFile(str(out / "documents.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for name, *_ in shards:
            # Selects each column by its top-level name, with all nested fields.
            for batch in pq.ParquetFile(folder / name).iter_batches(columns=schema.names):
                part = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
                stream.write_table(part)
                column = part.column("rows").combine_chunks()
                lengths.append(np.asarray(column.value_lengths(), dtype=np.int64))
                speech_sec += float(np.sum(part.column("speech_sec").to_numpy(), dtype=np.float64))
    np.save(out / "lengths.npy", np.concatenate(lengths))
    size = (out / "documents.arrow").stat().st_size
    (out / "counts.json").write_text(json.dumps({"speech_sec": speech_sec, "bytes": size}))


def _is_whole(stored: Path) -> bool:
    counts = _read_json(stored / "counts.json")
    try:
        return counts is not None and (stored / "documents.arrow").stat().st_size == counts["bytes"]
    except OSError:
        return False


def _key(*values: Any) -> str:
    return hashlib.sha256(json.dumps([VERSION, *values]).encode()).hexdigest()[:16]


def _stamps(folder: Path, shards: Shards) -> list[tuple[int, int] | None]:
    """Size and modification time of each shard; None for a missing one."""
    try:
        with os.scandir(folder) as entries:
            stamps = {e.name: (e.stat().st_size, e.stat().st_mtime_ns) for e in entries if e.is_file()}
    except OSError:
        stamps = {}
    return [stamps.get(name) for name, *_ in shards]


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _damage(path: Path, sha256: str) -> str | None:
    """Why a shard is damaged, or None."""
    try:
        if not path.stat().st_size:
            return "the file is empty"
        # Parquet's reader does not verify page checksums by default: a flipped byte may be read as a valid
        # row.
        return None if sha256_of(path) == sha256 else "its sha256 is not the recorded one"
    except OSError as error:
        return error.strerror or str(error)


def _open(path: Path) -> Any:
    import datasets  # importing it takes a second

    return datasets.Dataset.from_file(str(path)).with_format("arrow")
