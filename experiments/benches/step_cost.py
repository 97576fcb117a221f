"""Measures what a frozen trunk saves and adapters cost: training steps on the same batch.

    stage1   the speech parts are trained
    embed    the speech embeddings are trained: gradients pass through all layers, which are frozen
    lora     adapters are trained, rank 16 on all projections of trunk and tails
    full     everything is trained

    python -m experiments.benches.step_cost [--backbone embedded:smollm2-135m] [--rows 2048] [--repeats 5]
    python -m experiments.benches.step_cost --official --kinds stage1 lora --rows 4096    (not run yet)

Every measurement runs in its own process, and the kinds take turns. Memory is measured in further processes,
in which every large tensor has its own memory mapping (MAPPED), so that freed memory is returned immediately
and the peak of the resident set is that of the tensors; the memory that Python and the libraries use before
the model is built is subtracted.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import torch

from experiments.benches.talking_model import official_lm
from lit_moss.hub.recordings import local_device
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer
from lit_moss.llm.lora import Lora, add_adapters, is_adapter

KINDS = ("stage1", "embed", "lora", "full")
# Environment of glibc's malloc.
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "200000", "MALLOC_TRIM_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "1"}


def measure(kind: str, backbone: str, rows: int, steps: int, official: bool = False) -> dict[str, float]:
    """Median seconds per step (wall-clock and CPU) and peak GiB of memory, after two warm-up steps.

    Args:
        kind: One of `KINDS`.
        backbone: Backbone; with `official`, only its text tokenizer is used.
        rows: Number of packed rows per step.
        steps: Number of measured steps.
        official: Use random weights in the released shape. Frozen weights are kept in bfloat16, as with
            `frozen_dtype: bfloat16`.
    """
    from callbacks.throughput import memory_gib

    before = memory_gib()
    torch.manual_seed(0)
    device = local_device()
    if official:
        lm = _filled(official_lm(load_text_tokenizer(backbone), empty=True), device).train()
    else:
        lm = SplitLM.from_backbone(backbone, 4, 1152).to(device).train()
    if kind == "lora":
        add_adapters(lm, Lora())
        for name, p in lm.named_parameters():
            p.requires_grad_(is_adapter(name))
    part = {"stage1": "audio", "embed": "audio_embed"}.get(kind)
    if part is not None:
        for name, p in lm.named_parameters():
            p.requires_grad_(part in name)
    for p in lm.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-5, fused=True)
    V = lm.format.text_vocab_size
    text, speech = torch.randint(0, 1000, (rows,)), torch.randint(V, V + 1024, (rows,))
    three_quarters = torch.arange(rows) // 40 % 4 > 0
    mixed = torch.where(three_quarters, speech, text)[None].to(device)
    ids = (torch.arange(rows) // 400)[None].to(device)
    seconds, computing = [], []
    for _ in range(steps + 2):
        start = time.perf_counter(), time.process_time()
        with torch.autocast(device.type, torch.bfloat16):
            lm.loss(mixed, ids).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start[0])
        computing.append(time.process_time() - start[1])
    sec, cpu_sec = (sorted(x[2:])[steps // 2] for x in (seconds, computing))
    return {"sec": sec, "cpu_sec": cpu_sec, "gib": memory_gib() - before}


@torch.no_grad()
def _filled(lm: SplitLM, device: torch.device) -> SplitLM:
    """Fills a model from the meta device with random weights, which do not affect its speed."""
    lm.to_empty(device=device)
    for p in lm.parameters():
        if p.dim() > 1:
            p.normal_(0.0, 0.02)
        else:
            p.fill_(1.0)
    for b in lm.buffers():
        b.fill_(0.01 if b.is_floating_point() else 0)
    return lm


def _run(options: list[str], environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benches.step_cost", *options],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, env=os.environ | environment,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints one line for each kind, and the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="embedded:smollm2-135m")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of one process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind, taking turns")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--official", action="store_true", help="random weights in the released shape")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.backbone, args.rows, args.steps, args.official)))
        return
    measured: dict[str, list[dict[str, float]]] = {kind: [] for kind in args.kinds}
    sizes = ["--backbone", args.backbone, "--rows", str(args.rows), *["--official"] * args.official]
    for _ in range(args.repeats):
        for kind, results in measured.items():
            results.append(_run([*sizes, "--one", kind, "--steps", str(args.steps)], {}))
    memory = {kind: _run([*sizes, "--one", kind, "--steps", "1"], MAPPED)["gib"] for kind in measured}
    best = {
        kind: {"gib": memory[kind]} | {key: min(r[key] for r in results) for key in ("sec", "cpu_sec")}
        for kind, results in measured.items()
    }
    for kind, found in best.items():
        sec, cpu_sec, gib = found["sec"], found["cpu_sec"], found["gib"]
        print(f"{kind:<7} {sec:.3f} s a step ({cpu_sec:.3f} s of computing), {args.rows / sec:.0f} rows/s, "
              f"peak {gib:.2f} GiB")  # fmt: skip
    if full := best.pop("full", None):
        for kind, found in best.items():
            ratios = {key: found[key] / value for key, value in full.items()}
            print(f"{kind} / full: time {ratios['sec']:.3f}, computing {ratios['cpu_sec']:.3f}, "
                  f"memory {ratios['gib']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
