"""Shards: consecutive lines of a stage's sources, and the files with their results.

    parts/part-00017.jsonl            the shard's lines of the manifest
    parts/part-00017.rejected.jsonl   its lines of rejected.jsonl
    parts/part-00017.done             hashes, counts, and a fingerprint of lines, options and version
    parts/part-00017.log              in progress: one line per unit (local, removed at the end)

The lines of a shard depend only on the sources. A shard is done if its `.done` has the fingerprint of the
current lines, options and version; otherwise it is made again. Making it twice gives the same bytes.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from lit_moss.audio.io import RefusedAudio, UnreadableAudio, is_refused
from lit_moss.errors import UserError
from lit_moss.prepare.items import ManifestFolder, read_items, speech_sec
from lit_moss.prepare.stage import Item, Rejection, Result, Stage
from lit_moss.prepare.storage import Storage, is_remote

UNREADABLE = "unreadable audio"
_REFUSED = "a file that the system lets us read"
_SYNC_SEC = 2.0  # the most that a killed machine loses; a killed process loses one unit
_LEAST, _MOST = 16, 1024  # items of a shard
_SHARDS = 64


@dataclass(frozen=True)
class Span:
    """Lines of a source: bytes `first` to `stop` (exclusive)."""

    source: str
    first: int
    stop: int


@dataclass(frozen=True)
class Shard:
    """Consecutive items.

    Args:
        number: Index of the shard.
        spans: Positions of its lines.
        units: Number of items of each of its units.
        digest: Hash of the lines, and of size and modification time of the sound files in them.
    """

    number: int
    spans: tuple[Span, ...]
    units: tuple[int, ...]
    digest: str

    @property
    def name(self) -> str:
        """Prefix of the names of its files."""
        return f"parts/part-{self.number:05d}"

    @property
    def items(self) -> int:
        """Number of its items."""
        return sum(self.units)


@dataclass
class ShardCounts:
    """Statistics of a shard; they are summed over shards.

    Args:
        items_in: Number of input items.
        items_out: Number of lines of its manifest.
        speech_sec_in: Total duration of the input items in seconds, as far as stated.
        speech_sec_out: Total duration of the lines of its manifest in seconds.
        rejected: Reason -> number of rejections.
        counts: Counts of the stage.
        examples: Name of a count -> the first item or file that was counted.
    """

    items_in: int = 0
    items_out: int = 0
    speech_sec_in: float = 0.0
    speech_sec_out: float = 0.0
    rejected: dict[str, int] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, other: "ShardCounts") -> None:
        """Adds the counts of another shard."""
        self.items_in += other.items_in
        self.items_out += other.items_out
        self.speech_sec_in += other.speech_sec_in
        self.speech_sec_out += other.speech_sec_out
        for reason, number in other.rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + number
        for name, number in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + number
        self.examples = other.examples | self.examples


# --- planning -----------------------------------------------------------------------------------------------


def plan_shards(
    stage: Stage, sources: Sequence[str], folder: ManifestFolder, shard_items: int | None = None
) -> list[Shard]:
    """Divides the sources' lines into shards of whole units.

    Args:
        stage: Defines the units.
        sources: Manifests.
        folder: Checks the paths.
        shard_items: Minimum number of items of a shard; None: a 64th of all, 16 to 1024.

    Raises:
        UserError: if a source cannot be read, or an item lacks all keys that the stage needs.
    """
    if shard_items is None:
        total = sum(1 for source in sources for _ in read_items(source))
        shard_items = max(_LEAST, min(_MOST, -(-total // _SHARDS)))
    spans: list[Span] = []  # of items that were read but are not yet in a unit
    shards: list[Shard] = []
    stamps: list[bytes] = []

    def items() -> Iterator[Item]:
        for source in sources:
            for line in read_items(source):
                item = folder.resolved(line.item, source, line.number, stage.needs)
                spans.append(Span(source, line.first, line.stop))
                stamps.append(line.content + folder.stamps(item))
                yield item

    # `units` may read one item ahead: the items of a unit are the first of those read.
    taken = 0
    units: list[int] = []
    for unit in stage.units(items()):
        units.append(len(unit))
        taken += len(unit)
        if taken >= shard_items:
            shards.append(_shard(len(shards), spans[:taken], units, stamps[:taken]))
            del spans[:taken], stamps[:taken]
            units, taken = [], 0
    if units:
        shards.append(_shard(len(shards), spans[:taken], units, stamps[:taken]))
    return shards


def _shard(number: int, lines: Sequence[Span], units: Sequence[int], stamps: Sequence[bytes]) -> Shard:
    joined: list[Span] = []
    for line in lines:
        if joined and joined[-1].source == line.source and joined[-1].stop <= line.first:
            joined[-1] = Span(line.source, joined[-1].first, line.stop)
        else:
            joined.append(line)
    digest = sha256()
    for stamp in stamps:
        digest.update(len(stamp).to_bytes(8, "little") + stamp)
    return Shard(number, tuple(joined), tuple(units), digest.hexdigest()[:32])


# --- one shard ----------------------------------------------------------------------------------------------


def run_shard(
    stage: Stage,
    open_stage: Callable[[], None],
    shard: Shard,
    folder: ManifestFolder,
    fingerprint: str,
    progress: Callable[[int], None] = lambda items: None,
) -> None:
    """Makes the files of a shard; continues where an earlier, killed run stopped.

    Args:
        stage: The stage.
        open_stage: Loads the stage's models if they are not loaded; called if there is a unit to run.
        shard: The shard.
        folder: Folder of the files; resolves paths of items.
        fingerprint: Fingerprint of the stage, see `fingerprint_of`.
        progress: Called with the number of finished items.
    """
    storage = folder.storage
    log = _log_path(storage, shard)
    log.parent.mkdir(parents=True, exist_ok=True)
    # A worker whose parent was killed ends within moments, and holds the lock until then.
    with FileLock(log.with_suffix(".lock")):
        print_of_shard = f"{fingerprint} {shard.digest}"
        results = _logged(log, print_of_shard)
        progress(sum(shard.units[: len(results)]))
        if len(results) < len(shard.units):
            open_stage()
            with log.open("ab") as file:
                for unit in _units(shard, folder, skip=len(results)):
                    result = _run_unit(stage, unit)
                    lines = _as_lines(result, folder, unit, stage.name)
                    results.append(lines)
                    _append(file, lines)
                    progress(len(unit))
        _write(storage, shard, print_of_shard, results)
        log.unlink(missing_ok=True)
    log.with_suffix(".lock").unlink(missing_ok=True)


def remove_logs(storage: Storage, shards: Sequence[Shard]) -> None:
    """Removes files of workers that were ended after their shards were done; call it when all are done."""
    for shard in shards:
        log = _log_path(storage, shard)
        log.unlink(missing_ok=True)
        log.with_suffix(".lock").unlink(missing_ok=True)


def shard_counts(storage: Storage, shard: Shard, fingerprint: str) -> ShardCounts | None:
    """Counts of a finished shard; None if it is not finished, or its files are damaged."""
    if not storage.exists(f"{shard.name}.done"):
        return None
    try:
        done = json.loads(storage.read(f"{shard.name}.done"))
        if done.pop("fingerprint") != f"{fingerprint} {shard.digest}":
            return None
        for ending, digest in done.pop("sha256").items():
            if sha256(storage.read(shard.name + ending)).hexdigest() != digest:
                return None
        return ShardCounts(**done)
    except Exception:
        return None


def unreadable(item: Item, reason: str, is_refused: bool) -> Rejection:
    """The rejection of an item whose audio cannot be read.

    Args:
        item: The item.
        reason: `path: reason`.
        is_refused: Whether the system refused access to the file, see `RefusedAudio`: the item is tried again
            once it is accessible.
    """
    return Rejection(item, UNREADABLE, reason, _REFUSED if is_refused else None)


def is_to_be_tried_again(shard: Shard, counts: ShardCounts, folder: ManifestFolder) -> bool:
    """Whether a finished shard has rejected audio that the system refused to read then, but not now."""
    if not counts.rejected.get(UNREADABLE):
        return False
    of_the_step = folder.storage.path("rejected.jsonl")  # to which the paths are relative
    for line in read_items(folder.storage.path(f"{shard.name}.rejected.jsonl")):
        if line.item["threshold"] == _REFUSED:
            item = folder.resolved(line.item["item"], of_the_step, line.number)
            parts = (item, *(item.get("messages") or ()))
            paths = [path for part in parts if (path := part.get("audio_filepath"))]
            if not any(is_refused(path) for path in paths if not is_remote(path)):
                return True
    return False


def fingerprint_of(stage: Any) -> str:
    """16 hex digits of a stage's name, version and options."""
    content = [stage.name, stage.version, stage.content()]
    return sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _run_unit(stage: Stage, unit: list[Item]) -> Result:
    try:
        return stage.run(unit)
    except UnreadableAudio as error:
        if len(unit) == 1:
            return Result(rejected=[unreadable(unit[0], str(error), isinstance(error, RefusedAudio))])
    except Exception as error:
        error.add_note(f"in stage {stage.name}, unit {[str(item)[:300] for item in unit[:3]]}")
        raise
    # One bad recording in a batch: each item is processed alone.
    result = Result()
    for item in unit:
        alone = _run_unit(stage, [item])
        result.items += alone.items
        result.rejected += alone.rejected
        if alone.speech_sec_in is not None:
            result.speech_sec_in = (result.speech_sec_in or 0.0) + alone.speech_sec_in
        for name, number in alone.counts.items():
            result.counts[name] = result.counts.get(name, 0) + number
        result.examples = alone.examples | result.examples
    return result


def _units(shard: Shard, folder: ManifestFolder, skip: int) -> Iterator[list[Item]]:
    items = (
        folder.resolved(line.item, span.source, line.number)
        for span in shard.spans
        for line in read_items(span.source, span.first, span.stop)
    )
    for number, size in enumerate(shard.units):
        unit = list(islice(items, size))
        if len(unit) < size:
            got = f"{shard.spans[-1].source}: has lost lines since the step began"
            raise UserError(f"{got}, expected a file that stays as it is: start again")
        if number >= skip:
            yield unit


def _as_lines(result: Result, folder: ManifestFolder, unit: Sequence[Item], stage: str) -> dict[str, Any]:
    """The line of a unit in the log."""
    counts = ShardCounts(
        items_in=len(unit),
        items_out=len(result.items),
        speech_sec_in=sum(map(speech_sec, unit)) if result.speech_sec_in is None else result.speech_sec_in,
        speech_sec_out=sum(map(speech_sec, result.items)),
        counts=result.counts,
        examples=result.examples,
    )
    for rejection in result.rejected:
        counts.rejected[rejection.reason] = counts.rejected.get(rejection.reason, 0) + 1
    return {
        "items": [folder.written(item) for item in result.items],
        "rejected": [
            {
                "step": rejection.step or stage,
                "reason": rejection.reason,
                "value": rejection.value,
                "threshold": rejection.threshold,
                "item": folder.written(rejection.item),
            }
            for rejection in result.rejected
        ],
        "counts": asdict(counts),
    }


_last_sync = 0.0


def _append(file: BinaryIO, lines: dict[str, Any]) -> None:
    global _last_sync
    file.write(to_line(lines))
    file.flush()
    if time.monotonic() - _last_sync > _SYNC_SEC:
        os.fsync(file.fileno())
        _last_sync = time.monotonic()


def to_line(content: dict[str, Any]) -> bytes:
    """One line of JSON."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _logged(log: Path, print_of_shard: str) -> list[dict[str, Any]]:
    """Results in a log, truncated after the last complete line; a log of other inputs is restarted."""
    header = to_line({"fingerprint": print_of_shard})
    content = log.read_bytes() if log.exists() else b""
    if not content.startswith(header):
        log.write_bytes(header)
        return []
    results, end = [], len(header)
    for line in content[end:].splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            results.append(json.loads(line))
        except ValueError:
            break
        end += len(line)
    if end < len(content):
        os.truncate(log, end)
    return results


def _write(storage: Storage, shard: Shard, print_of_shard: str, results: Sequence[dict[str, Any]]) -> None:
    total = ShardCounts()
    digests = {}
    for ending, key in ((".jsonl", "items"), (".rejected.jsonl", "rejected")):
        content = b"".join(to_line(line) for lines in results for line in lines[key])
        storage.write(shard.name + ending, content)
        digests[ending] = sha256(content).hexdigest()
    for lines in results:
        total.add(ShardCounts(**lines["counts"]))
    done = {"fingerprint": print_of_shard, "sha256": digests} | asdict(total)
    storage.write(f"{shard.name}.done", json.dumps(done, indent=1).encode() + b"\n")


def _log_path(storage: Storage, shard: Shard) -> Path:
    """Local, because an object store cannot append."""
    if not storage.is_remote:
        return Path(storage.path(f"{shard.name}.log"))
    from lit_moss.assets import cache_dir

    folder = sha256(storage.folder.encode()).hexdigest()[:16]
    return cache_dir() / "prepare" / folder / f"{shard.name}.log"
