"""Items as JSON lines: reads them with their position in the file, and handles the paths in them."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from lit_moss.corpora.manifest import absolute_path
from lit_moss.errors import UserError
from lit_moss.prepare.item_keys import check_item, check_needs
from lit_moss.prepare.storage import Storage, absolute, is_inside, is_remote, open_read
from lit_moss.records import BYTE_ORDER_MARK, is_number

Item = dict[str, Any]


class FileName(str):
    """A `source` that is only the name of a file; a name stated in the chain takes precedence."""


@dataclass(frozen=True)
class Line:
    """A line of a manifest.

    Args:
        item: Its content.
        number: Line number, starting at 1 at byte `first` of `read_items`.
        first: Offset of its first byte in the file.
        stop: Offset after its last byte.
        content: Bytes of the line.
    """

    item: Item
    number: int
    first: int
    stop: int
    content: bytes


def read_items(source: str, first: int = 0, stop: int | None = None) -> Iterator[Line]:
    """Reads the items of a manifest, or of its bytes `first` to `stop`; empty lines are skipped.

    Raises:
        UserError: if the manifest cannot be read, or a line is not a JSON object; the message names the line.
    """
    with open_read(source) as file:
        file.seek(first)
        place = first
        for number in count(1):
            content = file.readline() if stop is None or place < stop else b""
            if not content:
                return
            begin, place = place, place + len(content)
            where = f"{source}, line {number}" if not first else f"{source}, byte {begin}"
            try:
                text = content.decode("utf-8").lstrip(BYTE_ORDER_MARK)
                if not text.strip():
                    continue
                item = json.loads(text)
            except (ValueError, RecursionError) as error:
                why = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
                raise UserError(
                    f"{where}: no JSON ({why}): got {content[:60]!r}, expected one JSON object a line"
                ) from error
            if not isinstance(item, dict):
                raise UserError(f"{where}: got {text.strip()[:60]!r}, expected a JSON object")
            yield Line(item, number, begin, place, content)


def resolved_items(sources: Sequence[str]) -> Iterator[Item]:
    """Items of manifests with absolute paths, for stages that need all items.

    Raises:
        UserError: as in `read_items`.
    """
    for source in sources:
        folder = ManifestFolder(Storage(os.path.dirname(source) or "."), os.path.dirname(source) or ".")
        for line in read_items(source):
            yield folder.resolved(line.item, source, line.number)


def speech_sec(item: Item) -> float:
    """Seconds of speech stated by an item, or by its messages."""
    parts = [item, *(m for m in item.get("messages") or () if isinstance(m, dict))]
    return float(sum(p["duration"] for p in parts if is_number(p.get("duration"))))


@dataclass(frozen=True)
class ManifestFolder:
    """The folder of a step, which resolves the paths in its manifest.

    A stage gets absolute paths. In the written manifest, paths below `work` are relative to the step's
    folder, so that the whole chain can be moved; others are absolute.

    Args:
        storage: Folder of the step.
        work: Folder of the whole chain.
        root: If given, every path must be below it or below `work`.
    """

    storage: Storage
    work: str
    root: str | None = None

    def resolved(self, item: Item, source: str, number: int, needs: Sequence[str] = ()) -> Item:
        """The item with absolute paths.

        Args:
            item: Item as in the manifest.
            source: Path of the manifest.
            number: Number of the line.
            needs: Keys of which the item must have at least one.

        Raises:
            UserError: if a path is not a string or is outside of the root, another key has the wrong type, or
                all required keys are missing.
        """
        check_item(item, f"{source}, line {number}")
        check_needs(item, needs, f"{source}, line {number}")

        def resolve(path: Any) -> str:
            where = f"{source}, line {number}: audio_filepath is {str(path)[:60]!r}"
            if not isinstance(path, str) or "\0" in path:
                raise UserError(f"{where}, expected the path of a sound file")
            whole = _absolute(path, os.path.dirname(source) or ".")
            if self.root is not None and not (is_inside(whole, self.root) or is_inside(whole, self.work)):
                raise UserError(f"{where}, expected a file below the root {self.root}: move it there")
            return whole

        return _with_paths(item, resolve)

    def written(self, item: Item) -> Item:
        """The item with the paths to be written to the manifest."""
        return _with_paths(item, self.written_path)

    def written_path(self, path: str) -> str:
        """An absolute path or an address, in the form used in the step's files."""
        if is_remote(path) or is_remote(self.work):
            base, inside = self.work.rstrip("/") + "/", path.startswith(self.work.rstrip("/") + "/")
            own = self.storage.folder.removeprefix(base).strip("/")
            ups = "" if self.storage.folder == self.work else "../" * (own.count("/") + 1)
            return ups + path.removeprefix(base) if inside else path
        inside = path.startswith(os.path.join(os.path.abspath(self.work), ""))
        return os.path.relpath(path, self.storage.folder) if inside else path

    def stamps(self, item: Item) -> bytes:
        """Size and modification time of an item's sound files; only the size if a step made them."""
        inside = os.path.join(os.path.abspath(self.work), "")
        stamps = []
        for part in (item, *(m for m in item.get("messages") or () if isinstance(m, dict))):
            if path := part.get("audio_filepath"):
                stamps.append(_stamp(path, not path.startswith(inside)))
        return b"".join(stamps)


def _with_paths(item: Item, change: Any) -> Item:
    item = dict(item)
    if item.get("audio_filepath") is not None:
        item["audio_filepath"] = change(item["audio_filepath"])
    if isinstance(item.get("messages"), list):
        item["messages"] = [
            {**m, "audio_filepath": change(m["audio_filepath"])}
            if isinstance(m, dict) and m.get("audio_filepath") is not None
            else m
            for m in item["messages"]
        ]
    return item


def _absolute(path: str, folder: str) -> str:
    if is_remote(path) or is_remote(folder):
        return absolute(path, folder)
    return str(absolute_path(Path(folder), path))


@lru_cache(maxsize=4096)
def _stamp(path: str, with_time: bool) -> bytes:
    if is_remote(path) or not os.path.exists(path):
        return b""
    status = os.stat(path)
    # Granting permission to read a file changes neither its size nor its time.
    refused = "" if os.access(path, os.R_OK) else " refused"
    return f"{status.st_size} {status.st_mtime_ns if with_time else ''}{refused}".encode()


def forget_stamps() -> None:
    """Clears cached sizes and times of files: a process may run a step twice, with changes in between."""
    _stamp.cache_clear()
