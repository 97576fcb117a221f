"""Measures generated rows per second at batch size 1, compared with transformers' generate on the backbone.

    python -m experiments.benches.generation_speed [--backbone embedded:smollm2-135m] [--tokens 64] …

Both generate the same number of tokens, greedily, from the same prompt of 32 ids, taking turns in one
process; the best of the repeats counts. `text` is text mode (the same layers and head as the backbone),
`speech` is speech mode (trunk, speech tail, speech head).
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import resolve_backbone


def main() -> None:
    """Prints one line for each dtype and kind, with the ratio to transformers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="embedded:smollm2-135m")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM

    folder, n = resolve_backbone(args.backbone), args.tokens
    for dtype in (torch.float32, torch.bfloat16):
        plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(args.device).eval()
        lm = SplitLM.from_backbone(folder, 4, 1152, dtype=dtype).to(args.device).eval()
        prompt = torch.arange(100, 132, device=args.device)[None]
        rows = prompt[0].tolist()
        lm.stop_ids = []  # generate the requested number of tokens, whatever they are
        kinds: dict[str, Callable[[], object]] = {
            "transformers": lambda plain=plain, prompt=prompt: plain.generate(
                prompt, max_new_tokens=n, min_new_tokens=n, do_sample=False, eos_token_id=None
            ),
            "text": lambda lm=lm, rows=rows: lm.generate(rows, max_new_tokens=n, greedy=True),
            "speech": lambda lm=lm, rows=rows: lm.generate(
                rows, modality="speech", max_new_tokens=n, min_new_tokens=n, greedy=True
            ),
        }
        best = dict.fromkeys(kinds, float("inf"))
        for _ in range(args.repeats + 1):  # the first is a warm-up
            for name, run in kinds.items():
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
        for name, sec in best.items():
            ratio = best["transformers"] / sec
            print(f"{str(dtype)[6:]:<9} {name:<13} {n / sec:6.1f} tokens/s  {ratio:.2f} x", flush=True)


if __name__ == "__main__":
    main()
