"""The worker process of `lit_moss.evaluate.utmos`: waves on stdin, scores on stdout.

    python -P utmos_worker.py CHECKOUT WEIGHTS THREADS

Input: int64 n, then n float32 samples at 16 kHz. Output: float64. It imports nothing from lit_moss.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch


def main(checkout: str, weights: str, threads: str) -> None:
    """Scores clips until stdin ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output printed by the model is not a score
    torch.set_num_threads(int(threads))
    # The checkout's `speechmos` has no __init__.py, so an installed package of that name would take
    # precedence, wherever the checkout is on the path. A module created here is found first.
    package = ModuleType("speechmos")
    package.__path__ = [str(Path(checkout) / "speechmos")]
    sys.modules["speechmos"] = package
    from speechmos.utmos22.strong.model import UTMOS22Strong  # pyright: ignore[reportMissingImports]

    model = UTMOS22Strong()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.eval()
    while len(header := sys.stdin.buffer.read(8)) == 8:
        samples = int(np.frombuffer(header, np.int64)[0])
        wave = np.frombuffer(sys.stdin.buffer.read(4 * samples), np.float32).copy()
        with torch.inference_mode():
            score = model(torch.from_numpy(wave)[None], 16_000)
        out.write(np.float64(score.item()).tobytes())
        out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
