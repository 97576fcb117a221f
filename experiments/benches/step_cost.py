"""What a frozen trunk saves, and what adapters cost: a step of stage 1 and one of adapters (LoRA, rank 16, on
all projections of trunk and tails) against a full step of the same batch, side by side.

    python -m experiments.benches.step_cost [--backbone embedded:smollm2-135m] [--rows 2048] [--repeats 5]

Every measurement runs in a process of its own, the kinds take turns. Memory is measured in further
processes, where every tensor of weight is a mapping of its own (MAPPED), so that freed memory is gone and the
peak of the resident set is that of the tensors; what Python and the libraries use before the model is built
is subtracted.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import torch

from lit_moss.llm import SplitLM
from lit_moss.llm.lora import Lora, add_adapters, is_adapter

# Of glibc's malloc.
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "200000", "MALLOC_TRIM_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "1"}


def measure(kind: str, backbone: str, rows: int, steps: int) -> dict[str, float]:
    """Median seconds of a step with `rows` packed rows, and peak GiB of memory, after two warm-up steps."""
    from callbacks.throughput import memory_gib

    before = memory_gib()
    torch.manual_seed(0)
    lm = SplitLM.from_backbone(backbone, 4, 1152).train()
    if torch.cuda.is_available():
        lm = lm.cuda()
    device = lm.model.text_norm.weight.device
    if kind == "lora":
        add_adapters(lm, Lora())
        for name, p in lm.named_parameters():
            p.requires_grad_(is_adapter(name))
    if kind == "stage1":
        for name, p in lm.named_parameters():
            p.requires_grad_("audio" in name)
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-5, fused=True)
    V = lm.format.text_vocab_size
    text, speech = torch.randint(0, 1000, (rows,)), torch.randint(V, V + 1024, (rows,))
    mixed = torch.where(torch.arange(rows) // 40 % 4 > 0, speech, text)[None].to(
        device
    )  # three quarters speech
    ids = (torch.arange(rows) // 400)[None].to(device)
    seconds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            lm.loss(mixed, ids).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"sec": sorted(seconds[2:])[steps // 2], "gib": memory_gib() - before}


def _run(options: list[str], environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benches.step_cost", *options],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, env=os.environ | environment,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints a line for each kind, and the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="embedded:smollm2-135m")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of one process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind, taking turns")
    parser.add_argument("--one", choices=["stage1", "lora", "full"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.backbone, args.rows, args.steps)))
        return
    measured: dict[str, list[dict[str, float]]] = {"stage1": [], "lora": [], "full": []}
    sizes = ["--backbone", args.backbone, "--rows", str(args.rows)]
    for _ in range(args.repeats):
        for kind, results in measured.items():
            results.append(_run([*sizes, "--one", kind, "--steps", str(args.steps)], {}))
    memory = {kind: _run([*sizes, "--one", kind, "--steps", "1"], MAPPED)["gib"] for kind in measured}
    best = {kind: (min(r["sec"] for r in results), memory[kind]) for kind, results in measured.items()}
    for kind, (sec, gib) in best.items():
        print(f"{kind:<7} {sec:.3f} s a step, {args.rows / sec:.0f} rows/s, peak {gib:.2f} GiB")
    sec, gib = best["full"]
    for kind in ("stage1", "lora"):
        print(f"{kind} / full: time {best[kind][0] / sec:.3f}, memory {best[kind][1] / gib:.3f}")


if __name__ == "__main__":
    main()
