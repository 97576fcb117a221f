"""What is computed from recordings once and kept in the cache: codes by a tokenizer, vectors by a speaker
encoder.

A file `KIND/FINGERPRINT/STAMP.parquet` holds up to 2000 recordings; FINGERPRINT is of the network that
computed the values, STAMP of the list of recordings. Columns: `key`, a hash of a recording's path, part, size
and time of change; `values`, a list of numbers, null for one that cannot be read; `reason`, why not.

A list that has no file yet takes from the other files of its folder what they hold, and computes the rest:
documents and a decoder's data, which keep other utterances of the same manifest, share their codes.

A recording that the system refuses (missing rights, a disk or server that fails) may be whole, so it has the
key `_TRY_AGAIN`, and the next run tries it again. Its file does not change when the cause is repaired.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from lit_moss.assets import cache_dir
from lit_moss.audio import io, rates
from lit_moss.corpora.manifest import Utterance
from lit_moss.corpora.readers import first_few
from lit_moss.errors import UserError
from lit_moss.files import make_once

PART = 2000  # recordings of a file: what a kill loses at most
_BATCH_SEC = 240.0  # of speech read before it is computed; bounds the memory
_LINE_EVERY_SEC = 60.0  # in logs, where there is no bar
_TRY_AGAIN = "0" * 32
_STARTED_NS = time.time_ns()
# Waves at 16 kHz -> the numbers of each, (n,).
Compute = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Entry:
    """What the cache holds of one recording.

    Args:
        values: (n,), read-only; None for a recording that cannot be read.
        reason: Why it cannot be read: `path: reason`; empty where it can.
        is_refused: Whether the system is why: it may be readable later.
    """

    values: np.ndarray | None
    reason: str = ""
    is_refused: bool = False


@dataclass(frozen=True)
class RecordingCache:
    """Values of recordings by one network.

    Args:
        kind: Name of the folder in the cache, and of the progress bar: `codes`.
        fingerprint: Of the network and its settings.
        value_type: Type of the numbers in the files.
        network: A context that gives the function that computes them; entered where values are missing.
    """

    kind: str
    fingerprint: str
    value_type: pa.DataType
    network: Callable[[], AbstractContextManager[Compute]]

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return cache_dir() / self.kind / self.fingerprint

    def entries(self, utterances: Sequence[Utterance]) -> list[Entry]:
        """One entry per utterance, from the cache or computed now.

        Of several processes (ranks of a node, trials of a sweep) one computes a part, the others wait for it.
        What is left out is printed, also where it was found by an earlier run: once by a process.

        Raises:
            UserError: if the cache cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the cache {cache_dir()} cannot be written ({error.strerror or error}): make room there, or "
                "set LIT_MOSS_CACHE to another folder"
            ) from error
        entries: list[Entry] = []
        for first in range(0, len(utterances), PART):
            part = utterances[first : first + PART]
            keys = [recording_key(u) for u in part]
            path = self.folder / f"{_hash(keys)[:16]}.parquet"
            make_once(
                path,
                lambda file, part=part, keys=keys: self._write(file, part, keys),
                _is_whole,
                waiting=_say_waiting,
            )
            entries += (entry for _, entry in _read(path))
        _say_left_out(entries)
        return entries

    def _write(self, path: Path, utterances: Sequence[Utterance], keys: Sequence[str]) -> None:
        known = self._known(set(keys))
        missing = [i for i, key in enumerate(keys) if key not in known]
        if missing:
            known |= {keys[i]: entry for i, entry in self._compute(utterances, missing)}
        entries = [known[key] for key in keys]
        kept = [_TRY_AGAIN if e.is_refused else key for key, e in zip(keys, entries, strict=True)]
        columns = {
            "key": pa.array(kept, pa.string()),
            "values": pa.array([entry.values for entry in entries], pa.list_(self.value_type)),
            "reason": pa.array([entry.reason for entry in entries], pa.string()),
        }
        pq.write_table(pa.table(columns), path)

    def _known(self, keys: set[str]) -> dict[str, Entry]:
        """Entries that other files of the folder hold already."""
        known: dict[str, Entry] = {}
        for path in _files_with(self.folder, keys):
            known |= {key: entry for key, entry in _read(path) if key in keys}
        return known

    def _compute(self, utterances: Sequence[Utterance], places: Sequence[int]) -> Iterator[tuple[int, Entry]]:
        # Sorted by length, so that batches hold little padding.
        ordered = sorted(places, key=lambda i: utterances[i].duration_sec or 0.0)
        batch: dict[int, Tensor] = {}
        reasons: list[str] = []
        with ExitStack() as stack:
            compute = _opened_late(stack, self.network)
            said = time.monotonic()
            for done, i in enumerate(tqdm(ordered, desc=self.kind, unit="recording", disable=None)):
                if time.monotonic() - said > _LINE_EVERY_SEC and not sys.stderr.isatty():  # no bar is drawn
                    said = time.monotonic()
                    print(f"{self.kind}: {done} of {len(ordered)} recordings", file=sys.stderr, flush=True)
                u = utterances[i]
                try:
                    batch[i] = io.read(u.audio, rates.TOKENIZER_RATE_HZ, u.offset_sec, u.duration_sec)
                except io.UnreadableAudio as error:
                    reasons.append(str(error))
                    yield i, Entry(None, str(error), isinstance(error, io.RefusedAudio))
                    continue
                if sum(map(len, batch.values())) >= _BATCH_SEC * rates.TOKENIZER_RATE_HZ:
                    yield from _computed(compute, batch)
                    batch = {}
            yield from _computed(compute, batch)
        if reasons:
            print(f"{len(reasons)} of {len(places)} left out: {'; '.join(reasons)}", file=sys.stderr)
            _said.update(reasons)


def _opened_late(stack: ExitStack, network: Callable[[], AbstractContextManager[Compute]]) -> Compute:
    """The network's function; the network is opened by its first call, so not where nothing can be read."""
    opened: list[Compute] = []

    def compute(waves: list[Tensor]) -> list[Tensor]:
        if not opened:
            opened.append(stack.enter_context(network()))
        return opened[0](waves)

    return compute


_said: set[str] = set()  # reasons that this process has printed


def _say_left_out(entries: Sequence[Entry]) -> None:
    """Prints what an earlier run, or another process, found unreadable."""
    reasons = [entry.reason for entry in entries if entry.reason and entry.reason not in _said]
    if reasons and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{len(reasons)} of {len(entries)} left out, as before: {first_few(reasons)}", file=sys.stderr)
    _said.update(reasons)


def _is_whole(path: Path) -> bool:
    """Whether a file is there, with nothing to try again.

    Ranks of a run must see the same recordings: what was written since this process began is left as it is.
    """
    if not path.exists() or path.stat().st_mtime_ns >= _STARTED_NS:
        return path.exists()
    return _TRY_AGAIN not in pq.read_table(path, columns=["key"]).column("key").to_pylist()


class _KeysOfFiles:
    """Which file of a folder holds which key, by the first 64 bits of the keys: 8 bytes a recording.

    Files do not change but for what is tried again, so each is read once by a process: a corpus that is
    encoded in many small lists would otherwise read all files for each of them.
    """

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._seen: set[str] = set()
        self._heads = np.zeros(0, dtype=np.uint64)
        self._file_of_head = np.zeros(0, dtype=np.int32)

    def files_with(self, folder: Path, keys: set[str]) -> list[Path]:
        """Files that hold one of the keys, and seldom another one that begins like them."""
        new = sorted(e.name for e in os.scandir(folder) if e.name.endswith(".parquet"))
        heads, files = [self._heads], [self._file_of_head]
        for name in new:
            if name not in self._seen:
                held = pq.read_table(folder / name, columns=["key"]).column("key").to_pylist()
                heads.append(_heads(held))
                files.append(np.full(len(held), len(self._files), dtype=np.int32))
                self._files.append(folder / name)
                self._seen.add(name)
        self._heads, self._file_of_head = np.concatenate(heads), np.concatenate(files)
        found = self._file_of_head[np.isin(self._heads, _heads(keys))]
        # A file may have been removed by the user meanwhile.
        return [path for path in sorted(self._files[i] for i in set(found.tolist())) if path.exists()]


_keys_of_folder: dict[Path, _KeysOfFiles] = {}


def _files_with(folder: Path, keys: set[str]) -> list[Path]:
    return _keys_of_folder.setdefault(folder, _KeysOfFiles()).files_with(folder, keys)


def _heads(keys: Iterable[str]) -> np.ndarray:
    return np.array([int(key[:16], 16) for key in keys], dtype=np.uint64)


def _computed(compute: Compute, batch: dict[int, Tensor]) -> Iterator[tuple[int, Entry]]:
    if batch:
        for i, values in zip(batch, compute(list(batch.values())), strict=True):
            yield i, Entry(values.numpy())


def _read(path: Path) -> list[tuple[str, Entry]]:
    """(key, entry) of each row."""
    table = pq.read_table(path, columns=["key", "values", "reason"])
    keys, reasons = (table.column(name).to_pylist() for name in ("key", "reason"))
    entries = []
    for key, values, reason in zip(keys, table.column("values"), reasons, strict=True):
        own = values.values.to_numpy() if values.is_valid else None
        entries.append((key, Entry(own, reason, key == _TRY_AGAIN)))
    return entries


def _say_waiting(lock: Path) -> None:
    print(f"waiting for another process that is doing this work ({lock})", file=sys.stderr)


def recording_key(utterance: Utterance) -> str:
    """32 hex digits of a recording's path, part, size and time of change, and of the rules that read it."""
    # `os.path`: Path raises for a name that no file can have.
    stat = utterance.audio.stat() if os.path.exists(utterance.audio) else None
    state = None if stat is None else (stat.st_size, stat.st_mtime_ns)
    if state is not None and not os.access(utterance.audio, os.R_OK):
        state = (*state, "refused")  # giving the right to read it changes neither size nor time
    return _hash([io.RULES, utterance.key, utterance.duration_sec, state])[:32]


def recordings_stamp(utterances: Sequence[Utterance]) -> str:
    """16 hex digits that change with any of the recordings, judged by the size and time of their files."""
    return _hash([recording_key(u) for u in utterances])[:16]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def local_device(name: str = "auto") -> torch.device:
    """The GPU of this process's rank on its node, where there is one; else the CPU.

    Args:
        name: A device to take instead: `cpu`, `cuda:1`.

    Raises:
        UserError: if it is no name of a device.
    """
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise UserError(f"device is {name!r}, expected auto, cpu, cuda or cuda:1 …") from error
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
