"""The Arrow copy of a folder of token documents: checked and made once a node, then opened by every process.

    shards.parquet ── sha256 of each ── what is damaged ──┐   kept by path, sizes and times of the shards
                                                          └── documents.arrow, lengths.npy   kept by content

The first process does both, others wait for it, and later starts look at the shards' sizes and times alone.
A copy appears whole or not at all; folders of the same content share one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info

from lit_moss.assets import cache_dir, sha256_of
from lit_moss.errors import UserError

VERSION = 1  # of the copy's layout
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
Shards = Sequence[tuple[str, int, str]]  # name, documents, sha256


@dataclass(frozen=True)
class ArrowCopy:
    """What is read in training.

    Args:
        table: `datasets.Dataset` of all readable documents, mapped, not read.
        lengths: Rows of each document, int64 (documents,), mapped.
        speech_sec: Seconds of speech in all of them.
    """

    table: Any
    lengths: np.ndarray
    speech_sec: float


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One process of this cache at a time, the others wait: ranks of a node, trials of a sweep."""
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
        try:
            lock.acquire(timeout=5)
        except Timeout:
            rank_zero_info(f"waiting for another process that is doing this work ({lock.lock_file})")
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"the cache {cache_dir()} cannot be written ({error.strerror or error}): give another by "
            "LIT_MOSS_CACHE"
        ) from error
    try:
        yield
    finally:
        lock.release()


def damaged_shards(folder: Path, shards: Shards) -> dict[str, str]:
    """Name of each shard that is not as it was written -> why; kept until a shard's size or time changes."""
    key = _key(str(folder.absolute()), shards, _stamps(folder, shards))
    kept = cache_dir() / "arrow" / "checked" / f"{key}.json"
    found = _read_json(kept)
    if found is None:
        with locked(kept.name):
            found = _read_json(kept)  # by the process that held the lock
            if found is None:
                rank_zero_info(f"{folder}: checking {len(shards)} shards, once on this machine")
                with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the GIL
                    reasons = pool.map(lambda s: _damage(folder / s[0], s[2]), shards)
                    found = {s[0]: why for s, why in zip(shards, reasons, strict=True) if why is not None}
                with _whole(kept) as partial:
                    partial.write_text(json.dumps(found))
    return found


def arrow_copy(folder: Path, shards: Shards) -> ArrowCopy:
    """The copy of these shards, made now if need be."""
    kept = cache_dir() / "arrow" / f"documents-{_key([sha256 for *_, sha256 in shards])}"
    if not _is_whole(kept):
        with locked(kept.name):
            if not _is_whole(kept):
                rank_zero_info(f"{folder}: copying {len(shards)} shards to {kept}, once on this machine")
                with _whole(kept) as partial:
                    _make(folder, shards, partial)
    counts = json.loads((kept / "counts.json").read_text())
    lengths = np.load(kept / "lengths.npy", mmap_mode="r")
    return ArrowCopy(_open(kept / "documents.arrow"), lengths, counts["speech_sec"])


def _make(folder: Path, shards: Shards, out: Path) -> None:
    """Writes the copy into an empty folder, a shard at a time."""
    out.mkdir()
    lengths, speech_sec = [], 0.0
    with pa.OSFile(str(out / "documents.arrow"), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as stream:
        for name, *_ in shards:
            for batch in pq.ParquetFile(folder / name).iter_batches(columns=SCHEMA.names):
                part = pa.Table.from_batches([batch]).select(SCHEMA.names).cast(SCHEMA)
                stream.write_table(part)
                column = part.column("rows").combine_chunks()
                lengths.append(np.asarray(column.value_lengths(), dtype=np.int64))
                speech_sec += float(np.sum(part.column("speech_sec").to_numpy(), dtype=np.float64))
    np.save(out / "lengths.npy", np.concatenate(lengths))
    size = (out / "documents.arrow").stat().st_size
    (out / "counts.json").write_text(json.dumps({"speech_sec": speech_sec, "bytes": size}))


def _is_whole(kept: Path) -> bool:
    counts = _read_json(kept / "counts.json")
    try:
        return counts is not None and (kept / "documents.arrow").stat().st_size == counts["bytes"]
    except OSError:
        return False


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path of its own beside `path`, which it replaces at the end, or is removed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{path.name}.partial-", dir=path.parent))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield scratch / "made"
        if path.is_dir():  # a damaged copy; what is mapped from it stays readable
            shutil.rmtree(path)
        (scratch / "made").replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} could not be written ({error.strerror or error}): make room there, or give another cache by "
        "LIT_MOSS_CACHE"
    )


def _key(*values: Any) -> str:
    return hashlib.sha256(json.dumps([VERSION, *values]).encode()).hexdigest()[:16]


def _stamps(folder: Path, shards: Shards) -> list[tuple[int, int] | None]:
    """Size and time of change of each shard; None for a missing one."""
    try:
        with os.scandir(folder) as entries:
            found = {e.name: (e.stat().st_size, e.stat().st_mtime_ns) for e in entries if e.is_file()}
    except OSError:
        found = {}
    return [found.get(name) for name, *_ in shards]


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _damage(path: Path, sha256: str) -> str | None:
    """What is wrong with a shard, or None."""
    try:
        if not path.stat().st_size:
            return "the file is empty"
        # Parquet's reader checks no page unless asked: a flipped byte may pass as another row.
        return None if sha256_of(path) == sha256 else "its sha256 is not the written one"
    except OSError as error:
        return error.strerror or str(error)


def _open(path: Path) -> Any:
    import datasets  # a second to import

    return datasets.Dataset.from_file(str(path)).with_format("arrow")
