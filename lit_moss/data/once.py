"""Work that one process of a node does for all others, such as ranks or trials of a sweep."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lit_moss import files
from lit_moss.assets import cache_dir
from lit_moss.errors import UserError


@contextlib.contextmanager
def cache_lock(work: str) -> Iterator[None]:
    """Lets one process at a time do `work` (a string that identifies the work); the others wait.

    Raises:
        UserError: if the lock file in the cache cannot be written.
    """
    lock = cache_dir() / "locks" / f"{hashlib.sha256(work.encode()).hexdigest()[:16]}.lock"
    with contextlib.ExitStack() as held:
        with cache_errors():
            held.enter_context(files.locked(lock, say_waiting))
        yield


@contextlib.contextmanager
def cache_errors() -> Iterator[None]:
    """Turns file system errors into one-line errors about the cache.

    Raises:
        UserError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {cache_dir()} cannot be written ({error.strerror or error}): make room there, or set "
            "LIT_MOSS_CACHE to another folder"
        ) from error


def say_waiting(lock: Path) -> None:
    """Logs that another process holds the lock."""
    rank_zero_info(f"waiting for another process that is doing this work ({lock})")
