"""glibc's allocator in trainings on CPU: memory that was freed is used again.

By default glibc gives freed blocks of more than 32 MB back to the kernel, and gets the next ones page by page:
each page of 4 KiB costs a fault and is filled with zeros. A step of a language model frees and asks again for
some gigabytes; numbers are in `experiments.benches.allocator` and docs/machines.md.
"""

import ctypes
import os
import platform

# mallopt's numbers, of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER = -1
_TOP_PAD_BYTES = 64 * 2**20  # how much more than asked for the heap grows


def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees; its peak stays what it was, within fragmentation.

    Settings of the user (`MALLOC_…`, `GLIBC_TUNABLES` of malloc) are left alone.

    Returns:
        Whether it was set.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ)
    if own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {
        _MMAP_MAX: 0,  # large blocks come from the heap too
        _TRIM_THRESHOLD: _NEVER,
        _TOP_PAD: _TOP_PAD_BYTES,
        _ARENA_MAX: 1,  # the thread of the backward frees what the thread of the forward asks for again
    }
    return all(mallopt(option, value) for option, value in settings.items())
