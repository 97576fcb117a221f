"""Times the backward of causal attention on one core, in bfloat16 and in float32 with casts to and from it.

    python -m experiments.benches.attention_backward [--heads 9] [--width 64]

`lit_moss.cpu_attention` chooses between the two based on these results.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_moss.cpu_attention import KERNEL, KERNEL_BACKWARD

ROWS = (32, 64, 100, 150, 200, 300, 400, 500, 1000)


def best_ms(run: Callable[[], Any], repeats: int = 5) -> float:
    """Minimum time of several calls in milliseconds, after a warm-up call."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def measure(heads: int, rows: int, width: int) -> tuple[float, float]:
    """Milliseconds of the backward in bfloat16, and in float32 with casts."""
    q, k, v, d_out = (torch.randn(1, heads, rows, width).bfloat16() for _ in range(4))
    out, lse = KERNEL(q, k, v, 0.0, True)

    def half() -> Any:
        return KERNEL_BACKWARD(d_out, q, k, v, out, lse, 0.0, True)

    def wide() -> list[Tensor]:
        inputs = (x.float() for x in (d_out, q, k, v, out))
        return [grad.bfloat16() for grad in KERNEL_BACKWARD(*inputs, lse, 0.0, True)]

    return best_ms(half), best_ms(wide)


def main() -> None:
    """Prints one line for each length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for rows in ROWS:
        half, wide = measure(args.heads, rows, args.width)
        print(f"{rows:>5} rows: bfloat16 {half:6.2f} ms, float32 {wide:6.2f} ms")


if __name__ == "__main__":
    main()
