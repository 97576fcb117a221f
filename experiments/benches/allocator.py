"""Measures the cost of returning freed memory to the kernel: steps of a language model, per allocator.

    default   glibc's allocator with default settings
    kept      freed memory is kept, set by mallopt
    huge      freed memory is kept, set by GLIBC_TUNABLES, with pages of 2 MB
    tcmalloc  TCMalloc, which keeps freed memory (Debian: libtcmalloc-minimal4), if installed
    jemalloc  jemalloc, configured to keep it (Debian: libjemalloc2), if installed

    python -m experiments.benches.allocator [--rows 1024] [--steps 6] [--repeats 3]

Each measurement runs in its own process; the allocators take turns.

TCMalloc was the fastest and used the least memory (experiments/LOG.md, 2026-11-28); jemalloc had no benefit.

By default, glibc returns freed blocks of more than 32 MB to the kernel and gets new ones page by page: each
page of 4 KiB costs a page fault and is filled with zeros. A step of a language model frees and allocates
several gigabytes.
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
from ctypes.util import find_library

HUGE = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.arena_max=1"
)
ENVIRONMENTS = {
    "default": {},
    "kept": {},
    "huge": {"GLIBC_TUNABLES": HUGE},
    "tcmalloc": {"LD_PRELOAD": "libtcmalloc_minimal.so.4", "TCMALLOC_RELEASE_RATE": "0"},
    "jemalloc": {
        "LD_PRELOAD": "libjemalloc.so.2",
        "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,metadata_thp:auto,thp:always",
    },
}
LIBRARIES = {"tcmalloc": "tcmalloc_minimal", "jemalloc": "jemalloc"}
# Options of mallopt (malloc.h): allocate large blocks from the heap too (M_MMAP_MAX); never trim the heap
# (M_TRIM_THRESHOLD), grow it by at least 64 MB (M_TOP_PAD), and use one for all threads (M_ARENA_MAX).
KEPT = {-4: 0, -1: -1, -2: 64 * 2**20, -8: 1}


def measure(way: str, rows: int, steps: int) -> dict[str, float]:
    """Median seconds per step, peak GiB, and thousands of page faults over all steps."""
    if way == "kept":
        for option, value in KEPT.items():
            ctypes.CDLL(None).mallopt(option, value)
    from experiments.benches import step_cost

    found = step_cost.measure("full", "embedded:smollm2-135m", rows, steps)
    return found | {"kfaults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt / 1000}


def main() -> None:
    """Prints each measurement and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=ENVIRONMENTS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.rows, options.steps)))
        return
    found: dict[str, list[dict[str, float]]] = {
        way: [] for way in ENVIRONMENTS if way not in LIBRARIES or find_library(LIBRARIES[way])
    }
    for _ in range(options.repeats):
        for way in found:
            words = ["--one", way, "--rows", str(options.rows), "--steps", str(options.steps)]
            done = subprocess.run(
                [sys.executable, "-m", "experiments.benches.allocator", *words],
                env=os.environ | ENVIRONMENTS[way], stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(way, found[way][-1], flush=True)
    for way, runs in found.items():
        print(way, {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]})


if __name__ == "__main__":
    main()
