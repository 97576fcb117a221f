"""Files and folders that appear whole or not at all, made once by one of several processes."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

PARTIAL = ".partial-"  # in the names of scratch folders, which a killed process leaves behind


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A new path on the same file system as `path`; what is still there at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{path.name}{PARTIAL}", dir=path.parent))
    try:
        yield scratch / path.name
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; it replaces `path` at the end.

    If the block raises, what was written is removed and `path` stays as it was. A folder at `path` is removed
    before it is replaced: what a process has mapped from it stays readable.
    """
    with scratch_beside(path) as partial:
        yield partial
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file completely or not at all.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
    """
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with atomic_write(path) as partial:
        partial.write_text(text)


@contextmanager
def locked(path: Path, waiting: Callable[[Path], None] | None = None) -> Iterator[None]:
    """One process at a time holds the lock file `path`; the others wait.

    Args:
        path: The lock file; it stays afterwards.
        waiting: Called once, with `path`, after five seconds of waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        if waiting is not None:
            waiting(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_once(
    path: Path,
    make: Callable[[Path], None],
    is_whole: Callable[[Path], bool] = Path.exists,
    waiting: Callable[[Path], None] | None = None,
) -> Path:
    """`path`, made by `make` if it is not there yet.

    Of several processes (ranks of a node, trials of a sweep) one makes it, the others wait and use it.

    Args:
        path: The file or folder.
        make: Writes it to the path that it is given; that path does not exist yet.
        is_whole: Whether `path` can be used as it is; it is made again where not.
        waiting: See `locked`.
    """
    if not is_whole(path):
        with locked(path.with_name(f"{path.name}.lock"), waiting):
            if not is_whole(path):  # made by the process that held the lock
                with atomic_write(path) as partial:
                    make(partial)
    return path
