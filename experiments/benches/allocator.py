"""What it costs that freed memory goes back to the kernel: steps of a language model, side by side.

    default   glibc's allocator as it is
    kept      `lit_moss.allocator.keep_freed_memory`
    huge      the same by GLIBC_TUNABLES, with pages of 2 MB

    python -m experiments.benches.allocator [--rows 1024] [--steps 6] [--repeats 3]

Each measurement runs in a process of its own; the ways take turns.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys

from lit_moss.allocator import keep_freed_memory

HUGE = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.arena_max=1"
)
WAYS = ("default", "kept", "huge")


def measure(way: str, rows: int, steps: int) -> dict[str, float]:
    """Median seconds of a step, peak GiB, and thousands of page faults of all steps together."""
    if way == "kept":
        keep_freed_memory()
    from experiments.benches import step_cost

    found = step_cost.measure("full", "embedded:smollm2-135m", rows, steps)
    return found | {"kfaults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt / 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=WAYS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.rows, options.steps)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            words = ["--one", way, "--rows", str(options.rows), "--steps", str(options.steps)]
            environment = os.environ | ({"GLIBC_TUNABLES": HUGE} if way == "huge" else {})
            done = subprocess.run(
                [sys.executable, "-m", "experiments.benches.allocator", *words],
                env=environment, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(way, found[way][-1], flush=True)
    for way, runs in found.items():
        print(way, {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]})


if __name__ == "__main__":
    main()
