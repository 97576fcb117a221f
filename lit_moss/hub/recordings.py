"""Caches values computed from recordings: codes of a tokenizer, vectors of a speaker encoder.

A file `KIND/FINGERPRINT/STAMP.parquet` contains up to 2000 recordings. FINGERPRINT identifies the network
that computed the values, STAMP the list of recordings. Columns: `key`, a hash of a recording's path, part,
size and modification time; `values`, a list of numbers, null for an unreadable recording; `reason`, why it is
unreadable.

A list without a file takes what other files of the folder contain, and computes the rest: documents and
decoder data, which keep different utterances of the same manifest, share their codes.

A recording that the system does not let us read (missing permissions, a failing disk or server) may be
intact, so it gets the key `_TRY_AGAIN`, and the next run tries again. The file itself does not change when
the cause is repaired.
"""

import hashlib
import json
import math
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

PART = 2000  # recordings per file: the most that a kill can lose
_BATCH_SEC = 240.0  # of speech to read before it is computed; limits the memory
_LINE_EVERY_SEC = 60.0  # in logs, without a progress bar
_TRY_AGAIN = "0" * 32
_STARTED_NS = time.time_ns()
# Waves at 16 kHz -> numbers (n,) of each.
Compute = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Entry:
    """Cached values of one recording.

    Args:
        values: Values (n,), read-only; None if the recording is unreadable.
        reason: Why it is unreadable, as `path: reason`; otherwise "".
        is_refused: Whether the system caused this: the recording may be readable later.
    """

    values: np.ndarray | None
    reason: str = ""
    is_refused: bool = False


@dataclass(frozen=True)
class RecordingCache:
    """Cache of the values that one network computes from recordings.

    Args:
        kind: Name of the folder in the cache, and of the progress bar, such as `codes`.
        fingerprint: Fingerprint of the network and its settings.
        value_type: Data type of the numbers in the files.
        network: Context manager that provides the function that computes values; entered only if values are
            missing.
    """

    kind: str
    fingerprint: str
    value_type: pa.DataType
    network: Callable[[], AbstractContextManager[Compute]]

    @property
    def folder(self) -> Path:
        """Folder of the files."""
        return cache_dir() / self.kind / self.fingerprint

    def entries(self, utterances: Sequence[Utterance], most_left_out: float = math.inf) -> list[Entry]:
        """One entry per utterance, from the cache or newly computed.

        Of several processes (ranks of a node, trials of a sweep), one computes a part and the others wait.
        Skipped recordings are counted in one line, once per process, also if an earlier run found them.

        Args:
            utterances: Parts of recordings.
            most_left_out: Number of skipped recordings above which the line is not printed: the caller's
                error names them.

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
        fresh: set[str] = set()  # reasons that this call has found
        for first in range(0, len(utterances), PART):
            part = utterances[first : first + PART]
            keys = [recording_key(u) for u in part]
            path = self.folder / f"{_hash(keys)[:16]}.parquet"
            make_once(
                path,
                lambda file, part=part, keys=keys: self._write(file, part, keys, fresh),
                _is_whole,
                waiting=_say_waiting,
            )
            entries += (entry for _, entry in _read(path))
        if sum(entry.values is None for entry in entries) <= most_left_out:
            _say_left_out(entries, fresh)
        return entries

    def _write(
        self, path: Path, utterances: Sequence[Utterance], keys: Sequence[str], fresh: set[str]
    ) -> None:
        known = self._known(set(keys))
        missing = [i for i, key in enumerate(keys) if key not in known]
        if missing:
            computed = {keys[i]: entry for i, entry in self._compute(utterances, missing)}
            fresh.update(entry.reason for entry in computed.values() if entry.reason)
            known |= computed
        entries = [known[key] for key in keys]
        kept = [_TRY_AGAIN if e.is_refused else key for key, e in zip(keys, entries, strict=True)]
        columns = {
            "key": pa.array(kept, pa.string()),
            "values": pa.array([entry.values for entry in entries], pa.list_(self.value_type)),
            "reason": pa.array([entry.reason for entry in entries], pa.string()),
        }
        pq.write_table(pa.table(columns), path)

    def _known(self, keys: set[str]) -> dict[str, Entry]:
        """Entries that are already in other files of the folder."""
        known: dict[str, Entry] = {}
        for path in _files_with(self.folder, keys):
            known |= {key: entry for key, entry in _read(path) if key in keys}
        return known

    def _compute(self, utterances: Sequence[Utterance], places: Sequence[int]) -> Iterator[tuple[int, Entry]]:
        # Sorted by length, so that batches contain little padding.
        ordered = sorted(places, key=lambda i: utterances[i].duration_sec or 0.0)
        batch: dict[int, Tensor] = {}
        with ExitStack() as stack:
            compute = _opened_late(stack, self.network)
            said = time.monotonic()
            for done, i in enumerate(tqdm(ordered, desc=self.kind, unit="recording", disable=None)):
                if time.monotonic() - said > _LINE_EVERY_SEC and not sys.stderr.isatty():  # no bar is drawn
                    said = time.monotonic()
                    print(f"{self.kind}: {done} of {len(ordered)} recordings", file=sys.stderr, flush=True)
                u = utterances[i]
                try:
                    batch[i] = io.read(
                        u.audio, rates.TOKENIZER_RATE_HZ, u.offset_sec, u.duration_sec, channel=u.channel
                    )
                except io.UnreadableAudio as error:
                    yield i, Entry(None, str(error), isinstance(error, io.RefusedAudio))
                    continue
                if sum(map(len, batch.values())) >= _BATCH_SEC * rates.TOKENIZER_RATE_HZ:
                    yield from _computed(compute, batch)
                    batch = {}
            yield from _computed(compute, batch)


def _opened_late(stack: ExitStack, network: Callable[[], AbstractContextManager[Compute]]) -> Compute:
    """The function of the network, which is opened by the first call: not at all if nothing is readable."""
    opened: list[Compute] = []

    def compute(waves: list[Tensor]) -> list[Tensor]:
        if not opened:
            opened.append(stack.enter_context(network()))
        return opened[0](waves)

    return compute


_said: set[str] = set()  # reasons that this process has printed


def _say_left_out(entries: Sequence[Entry], fresh: set[str]) -> None:
    """Prints what is unreadable; `as before` if all of it was found by an earlier run, or another process."""
    reasons = [e.reason for e in entries if e.reason and (e.reason in fresh or e.reason not in _said)]
    # Other ranks of a node read the same list; what one of them has found itself, no other prints.
    if reasons and (fresh or os.environ.get("LOCAL_RANK", "0") == "0"):
        before = "" if fresh else ", as before"
        print(f"{len(reasons)} of {len(entries)} left out{before}: {first_few(reasons)}", file=sys.stderr)
    _said.update(reasons)


def _is_whole(path: Path) -> bool:
    """Whether a file exists and has no entries to try again.

    Ranks of a run must see the same recordings: files written since this process started are not tried again.
    """
    if not path.exists() or path.stat().st_mtime_ns >= _STARTED_NS:
        return path.exists()
    return _TRY_AGAIN not in pq.read_table(path, columns=["key"]).column("key").to_pylist()


class _KeysOfFiles:
    """Index of which file contains which key, by the first 64 bits of the keys: 8 bytes per recording.

    Files do not change except for entries that are tried again, so a process reads each file once. Otherwise
    a corpus that is encoded in many small lists would read all files for each list.
    """

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._seen: set[str] = set()
        self._heads = np.zeros(0, dtype=np.uint64)
        self._file_of_head = np.zeros(0, dtype=np.int32)

    def files_with(self, folder: Path, keys: set[str]) -> list[Path]:
        """Files that contain one of the keys, and rarely another file whose key begins the same way."""
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
        # The user may have removed a file meanwhile.
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
    """32 hex digits of a recording's path, part, size and modification time, and of the rules for reading
    it."""
    # `os.path`, because Path raises an error for invalid file names.
    stat = utterance.audio.stat() if os.path.exists(utterance.audio) else None
    state = None if stat is None else (stat.st_size, stat.st_mtime_ns)
    if state is not None and not os.access(utterance.audio, os.R_OK):
        state = (*state, "refused")  # granting permissions changes neither size nor time
    return _hash([io.RULES, utterance.key, utterance.duration_sec, state])[:32]


def recordings_stamp(utterances: Sequence[Utterance]) -> str:
    """16 hex digits that change with any of the recordings, by the size and time of their files."""
    return _hash([recording_key(u) for u in utterances])[:16]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def local_device(name: str = "auto") -> torch.device:
    """The GPU of this process's local rank if there is one, otherwise the CPU.

    Args:
        name: Use this device instead, such as `cpu` or `cuda:1`.

    Raises:
        UserError: if the name is not a device.
    """
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise UserError(f"device is {name!r}, expected auto, cpu, cuda or cuda:1 …") from error
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
