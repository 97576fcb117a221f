"""Compares non-padding rows per second in training with Hugging Face's Trainer on the same data.

    python -m experiments.benches.versus_trainer DOCUMENTS… [--shares 1 1 0.1] [--steps 6] [--repeats 2]

DOCUMENTS are folders of token documents (`prepare documents`), of which the given shares are used. The
Trainer is used as usual: the backbone with codes added to its vocabulary, one document per sequence, drawn at
random, batches padded to their longest sequence, bf16; and once more sorted by length
(`train_sampling_strategy`). Ours is the split model with nothing frozen, on the same documents, packed. All
process about the same number of rows per step; only rows that are not padding count. The variants take turns,
each in its own process; the first steps are warm-up and do not count.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from lit_moss.data.documents import read_documents
from lit_moss.data.packing import PackOrder, pack
from lit_moss.llm import SplitLM
from lit_moss.llm.rows import RowFormat

WARM_UP = 2
KINDS = {
    "padded": "transformers.Trainer, padded",
    "sorted": "transformers.Trainer, padded, sorted by length",
    "ours": "ours, packed",
}


def rows_of(folders: list[Path], shares: list[float]) -> tuple[list[np.ndarray], RowFormat]:
    """Rows of the given share of each folder's documents, and their row format."""
    sets = [read_documents(folder) for folder in folders]
    rows = [
        d.rows(i).astype(np.int64)
        for d, share in zip(sets, shares, strict=True)
        for i in range(max(1, round(len(d) * share)))
    ]
    return rows, next((d.format for d in sets if d.meta.get("speech_tokenizer")), sets[0].format)


def ours(items: list[np.ndarray], row_format: RowFormat, backbone: str, rows: int, steps: int) -> float:
    """Non-padding rows per second of packed training with nothing frozen."""
    packs = pack(np.array([len(i) for i in items]), rows, min_fill=0.97)
    order = PackOrder([len(packs)], [1.0], 1)
    torch.manual_seed(0)
    lm = SplitLM.from_backbone(backbone, 4, row_format.audio_vocab_size, row_format=row_format).train()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-5, fused=True)
    useful, seconds = 0, 0.0
    for step in range(WARM_UP + steps):
        pieces = packs.pieces(order.at(step)[1])
        flat = np.concatenate([items[d][a:b] for d, a, b in pieces])
        ids = np.repeat(np.arange(len(pieces)), [b - a for _, a, b in pieces])
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = lm.loss(torch.from_numpy(flat)[None], torch.from_numpy(ids)[None])
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= WARM_UP:
            useful += len(flat)
            seconds += time.perf_counter() - start
    return useful / seconds


def theirs(
    items: list[np.ndarray], row_format: RowFormat, backbone: str, rows: int, steps: int, by_length: bool
) -> float:
    """Non-padding rows per second of transformers.Trainer on padded batches."""
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from lit_moss.llm.backbone import resolve_backbone

    model: Any = AutoModelForCausalLM.from_pretrained(resolve_backbone(backbone), dtype=torch.float32)
    model.resize_token_embeddings(row_format.text_vocab_size + row_format.audio_vocab_size)
    size = max(1, round(rows / float(np.mean([len(i) for i in items]))))
    data = [{"input_ids": i} for i in items]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(b["input_ids"]) for b in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, b in enumerate(batch):
            n = len(b["input_ids"])
            ids[i, :n] = labels[i, :n] = torch.from_numpy(b["input_ids"])
            mask[i, :n] = 1
        seen.append(int(mask.sum()))
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    seen: list[int] = []
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(
            output_dir=out,
            max_steps=WARM_UP + steps,
            per_device_train_batch_size=size,
            bf16=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            learning_rate=1e-5,
            disable_tqdm=True,
            dataloader_num_workers=0,
            train_sampling_strategy="group_by_length" if by_length else "random",
        )
        trainer = Trainer(
            model=model, args=args, train_dataset=cast(Any, data), data_collator=collate, callbacks=[Clock()]
        )
        trainer.train()
    return sum(seen[WARM_UP : WARM_UP + steps]) / sum(times[WARM_UP:])


def main() -> None:
    """Prints both rates and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", type=Path, nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", help="share of each folder's documents; all")
    parser.add_argument("--backbone", default="embedded:smollm2-135m")
    parser.add_argument("--rows", type=int, default=2048, help="rows of a step, on average")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of one process")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each, taking turns")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        items, row_format = rows_of(args.documents, args.shares or [1.0] * len(args.documents))
        sizes = items, row_format, args.backbone, args.rows, args.steps
        print(json.dumps(ours(*sizes) if args.one == "ours" else theirs(*sizes, args.one == "sorted")))
        return
    best = dict.fromkeys(KINDS, 0.0)
    for _ in range(args.repeats):
        for name in best:
            done = subprocess.run(
                [sys.executable, "-m", "experiments.benches.versus_trainer", *sys.argv[1:], "--one", name],
                capture_output=True, text=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            best[name] = max(best[name], json.loads(done.stdout.splitlines()[-1]))
    for name, what in KINDS.items():
        print(f"{what:<46} {best[name]:6.0f} useful rows/s, ours is {best['ours'] / best[name]:.2f} x")


if __name__ == "__main__":
    main()
