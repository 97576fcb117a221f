"""Files and folders that appear whole or not at all, made once by one of several processes."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_moss.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

PARTIAL = ".partial-"  # in the names of scratch folders, which a killed process leaves behind


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A new path on the same file system as `path`; what is still there at the end is removed.

    Its folder is locked meanwhile, see `remove_leftovers`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        scratch = _make_scratch(path)
        while not held.enter_context(_lock_of(scratch, wait=True)) and not scratch.exists():
            scratch = _make_scratch(path)  # another process took it for a leftover
        try:
            yield scratch / path.name
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _make_scratch(path: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{path.name}{PARTIAL}", dir=path.parent))


@contextmanager
def _lock_of(scratch: Path, wait: bool = False) -> Iterator[bool]:
    """Locks a folder; yields whether it is locked, which some file systems cannot do, and still there."""
    if fcntl is None:
        yield False
        return
    try:
        folder = os.open(scratch, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_locked = scratch.exists()
        except OSError:
            is_locked = False
        yield is_locked
    finally:
        os.close(folder)


def remove_leftovers(path: Path) -> list[Path]:
    """Removes what killed processes left of writing `path`.

    Returns:
        Scratch folders that a living process writes to, or may write to.
    """
    pattern = re.compile(re.escape(path.name + PARTIAL) + r"[a-z0-9_]{8}")
    found = [f for f in sorted(path.parent.glob(f"*{PARTIAL}*")) if pattern.fullmatch(f.name) and f.is_dir()]
    for scratch in found:
        with _lock_of(scratch) as is_locked:
            if is_locked and {inside.name for inside in scratch.iterdir()} <= {path.name}:
                shutil.rmtree(scratch, ignore_errors=True)
    return [scratch for scratch in found if scratch.exists()]


def apply_umask(files: Iterable[Path]) -> None:
    """Gives files the mode of newly made ones: safetensors' are readable by their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe"
        probe.touch()
        mode = probe.stat().st_mode & 0o777
    for file in files:
        with contextlib.suppress(PermissionError):  # somebody else's, or a file system without modes
            file.chmod(mode)


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


@contextmanager
def errors_of_writing(path: Path) -> Iterator[None]:
    """Errors of the system while `path` is written, as one line.

    Raises:
        UserError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"{path} could not be written ({why}): make room or rights, or give another place"
        ) from error


def check_can_write(path: Path) -> None:
    """Refuses a file that could not be written, before the work that it is for; makes no folders yet.

    Raises:
        UserError: if it is a folder, or its own cannot be made or written to.
    """
    folder = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    with errors_of_writing(path):
        if path.is_dir():
            raise UserError(f"{path} is a folder: expected the name of a file to write")
        tempfile.TemporaryDirectory(prefix=f"{path.name}{PARTIAL}", dir=folder).cleanup()


def folder_to_make(path: str | Path) -> Path:
    """The absolute path of a folder that `atomic_write` is to make or replace; of a link, where it leads.

    Raises:
        UserError: for the working folder and those above it: whoever stands in a folder that is replaced
            looks into an empty one.
    """
    try:
        folder, here = Path(path).resolve(), Path.cwd()
    except (OSError, RuntimeError) as error:  # links in a circle, a working folder that is gone
        raise UserError(f"{path} cannot be found ({error}): give another folder") from error
    if here.is_relative_to(folder):
        raise UserError(f"{path} is the working folder or above it, expected a folder inside: give its name")
    return folder


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
