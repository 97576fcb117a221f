"""Local folders and remote storage: paths, and any address that fsspec opens (s3://, gs://).

Files are written atomically: locally with a temporary name and a rename, in an object store with a single
put. Credentials come from the environment, as read by each store's library.
"""

import errno
import io
import os
import posixpath
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np

from lit_moss.assets import cache_dir
from lit_moss.errors import UserError
from lit_moss.files import PARTIAL, atomic_write, make_once


def is_remote(path: str) -> bool:
    """Whether a path is an address of remote storage."""
    return "://" in path


def absolute(path: str, base: str) -> str:
    """The absolute form of a path or address, relative to the folder `base`."""
    if is_remote(path):
        return path
    if is_remote(base):
        return path if posixpath.isabs(path) else _normal_address(f"{base}/{path}")
    return os.path.normpath(os.path.join(os.path.abspath(base), path))


def _normal_address(address: str) -> str:
    protocol, _, rest = address.partition("://")
    return f"{protocol}://{posixpath.normpath(rest)}"


def is_inside(path: str, folder: str) -> bool:
    """Whether a path or address is below a folder, following symbolic links."""
    if is_remote(path) != is_remote(folder):
        return False
    if is_remote(path):
        return _normal_address(path).startswith(_normal_address(folder).rstrip("/") + "/")
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def open_read(path: str) -> Any:
    """Opens a file for reading bytes, as a context manager; it supports `seek`.

    Raises:
        UserError: if the file does not exist or cannot be read.
    """
    try:
        if not is_remote(path):
            return open(path, "rb")
        system, inner = fsspec.url_to_fs(path)
        return system.open(inner, "rb")
    except (OSError, ImportError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> UserError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return UserError(f"{path} cannot be read ({why}): expected a file")


# A full disk or quota, a read-only file system, missing permissions, a file in place of a folder.
_CANNOT_WRITE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
)


@contextmanager
def refusals_to_write(what: str, folder: str) -> Iterator[None]:
    """Turns errors of a file system that accepts no more files into one-line errors.

    Args:
        what: What was being done, for the message.
        folder: Folder being written to.

    Raises:
        UserError: instead of such an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise UserError(
            f"{what}: {error.filename or folder} cannot be written ({os.strerror(error.errno)}): make room, "
            "or give another folder; what is done stays, and the same call goes on"
        ) from error


def local_copy(path: str) -> Path:
    """The path itself, or for a remote file, the path of a copy in the cache, downloaded once per version."""
    if not is_remote(path):
        return Path(path)
    try:
        system, inner = fsspec.url_to_fs(path)
        info = system.info(inner)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error or type(error).__name__}): expected a file"
        ) from error
    version = str(info.get("ETag") or info.get("mtime") or info.get("size"))
    name = sha256(f"{path} {version}".encode()).hexdigest()[:24] + posixpath.splitext(path)[1]
    return make_once(cache_dir() / "fetched" / name, lambda made: system.get_file(inner, str(made)))


@dataclass(frozen=True)
class Storage:
    """A folder, local or remote.

    Args:
        folder: Path or address of the folder.
    """

    folder: str

    @property
    def is_remote(self) -> bool:
        """Whether the folder is remote."""
        return is_remote(self.folder)

    def path(self, name: str) -> str:
        """Path or address of a file in the folder."""
        return absolute(name, self.folder)

    def exists(self, name: str) -> bool:
        """Whether the folder contains a file (or folder) with this name."""
        if not self.is_remote:
            return os.path.exists(self.path(name))
        system, inner = fsspec.url_to_fs(self.path(name))
        system.invalidate_cache()
        return system.exists(inner)

    def read(self, name: str) -> bytes:
        """Content of a file."""
        with open_read(self.path(name)) as file:
            return file.read()

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """Opens a file for writing bytes; it appears when the block ends without an error."""
        if not self.is_remote:
            path = Path(self.path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial, partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            return
        # Written here first, because a store's own file object uploads what it has even if the block raises.
        scratch = cache_dir() / "outgoing" / sha256(f"{self.path(name)} {os.getpid()}".encode()).hexdigest()
        scratch.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("wb") as file:
                yield file
            system, inner = fsspec.url_to_fs(self.path(name))
            system.makedirs(posixpath.dirname(inner), exist_ok=True)
            system.put_file(str(scratch), inner)
        finally:
            scratch.unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Writes a file atomically, see `writer`."""
        with self.writer(name) as file:
            file.write(content)

    def remove_partials(self) -> None:
        """Removes temporary files of killed processes; call it when nothing writes to the folder."""
        if self.is_remote:
            return
        for folder, folders, _ in os.walk(self.folder):
            for name in [n for n in folders if PARTIAL in n]:
                folders.remove(name)
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)

    def save_sound(self, name: str, wave: np.ndarray, rate_hz: int) -> str:
        """Writes samples (T,) in [-1, 1] as 16-bit FLAC.

        Args:
            name: `audio/NAME.flac`; derived from the content, so that an interrupted run does not make it
                twice.
            wave: Samples (T,).
            rate_hz: Sample rate in Hz.

        Returns:
            Path or address of the file, for an item's `audio_filepath`.
        """
        import soundfile

        buffer = io.BytesIO()
        soundfile.write(buffer, np.asarray(wave, dtype=np.float32), rate_hz, format="FLAC")
        self.write(name, buffer.getvalue())
        return self.path(name)
