"""Freezing and rates on two ranks against one process, with the settings of conf/trainer: DDP, FSDP2,
DeepSpeed ZeRO-1, 2 and 3, over gloo.

Run as a script this file is all trainings of one number of ranks, one after the other, since processes take
longer to start than to train: `test_sharded.py FOLDER RANKS` writes every parameter and rate after every step
to FOLDER/STRATEGY-RULES-PRECISION.pt.
"""

import os
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded import settings, start_ranks, wait_for

STEPS = 12
# Stage 1 until step 4, then everything but one part, which never trains.
STAGES = [{"policy": "stage1", "until_step": 4}, {"policy": "full", "freeze": ["text_head"]}]
DELAY = 3  # steps between two of the three trunk layers
FILES = ["ddp", "fsdp2"]
FILES += ["deepspeed_1", "deepspeed_2", "deepspeed_3"] if find_spec("deepspeed") else []
CASES = {
    1: [("one", rules, "32-true") for rules in ("stages", "reverse", "lora")],
    2: [(file, *how) for file in FILES
        for how in (("stages", "32-true"), ("reverse", "32-true"), ("stages", "bf16-mixed"),
                    ("lora", "32-true"))],
}  # fmt: skip


def states_of_all(tmp_path):
    """States of all trainings, by strategy, rules and precision."""
    folders = {ranks: tmp_path / f"ranks{ranks}" for ranks in CASES}
    for folder in folders.values():
        folder.mkdir()
    running = {n: start_ranks(n, folders[n], __file__, str(folders[n]), str(n)) for n in CASES}
    for ranks, started in running.items():
        wait_for(started, folders[ranks])
    return {
        case: torch.load(folders[ranks] / f"{'-'.join(case)}.pt", weights_only=True)
        for ranks, cases in CASES.items() for case in cases
    }  # fmt: skip


def trains(name, rules, step):
    """Whether a parameter may move in the step from `step` to `step + 1`, spelt out."""
    if rules == "lora":
        return ".lora_" in name
    if rules == "stages":
        return "audio" in name if step < 4 else not name.startswith("text_lm_head")
    layer = [i for i in range(3) if name.startswith(f"model.shared_block.layers.{i}.")]
    # At the step on which a layer begins its rate is 0 (u = 0 of appendix D).
    return not layer or step > (2 - layer[0]) * DELAY


@pytest.mark.nightly
def test_what_is_frozen_moves_by_0_and_the_rest_as_in_one_process(tmp_path):
    states = states_of_all(tmp_path)
    for (strategy, rules, precision), found in states.items():
        case = (strategy, rules, precision)
        assert len(found) == STEPS + 1, case
        # DeepSpeed shows bfloat16 copies in bf16-mixed: a step may be too small for them.
        coarse = strategy.startswith("deepspeed") and precision == "bf16-mixed"
        for step, (before, after) in enumerate(pairwise(found)):
            # Of the 232 rows of both tables not all occur in a step: tables move as wholes.
            for name, value in after["parameters"].items():
                same = torch.equal(before["parameters"][name], value)
                if not (coarse and same):
                    assert same != trains(name, rules, step), (*case, step, name)
        for name, value in found[-1]["parameters"].items():
            moved = not torch.equal(found[0]["parameters"][name], value)
            assert moved == any(trains(name, rules, step) for step in range(STEPS)), (*case, name)
        alone = states["one", rules, "32-true"]
        for step, (ours, theirs) in enumerate(zip(found, alone, strict=True)):
            if step:
                assert ours["rates"] == theirs["rates"], (*case, step)
            for name, value in ours["parameters"].items():
                # Sums of two ranks round otherwise, and Adam's first step divides by them.
                bound = 5e-5 if precision == "32-true" else 0.2
                assert (value - theirs["parameters"][name]).abs().max() < bound, (*case, step, name)
        # Weights are gathered in the precision's dtype, and trained in float32.
        half = precision == "bf16-mixed" and strategy != "ddp"  # DDP gathers nothing
        assert found[-1]["computed"] == ("torch.bfloat16" if half else "torch.float32"), strategy
        if strategy in ("ddp", "fsdp2"):
            assert found[-1]["trained"] == "torch.float32"


if __name__ == "__main__":
    import lightning.pytorch as pl
    from backbones import folder_of
    from jsonargparse import ArgumentParser
    from torch.utils.data import DataLoader

    import callbacks
    from lit_moss.data.batches import TokenBatch
    from lit_moss.llm.lora import Lora
    from lit_moss.llm.rows import RowFormat
    from lit_moss.modules import SplitLLM

    out, devices = Path(sys.argv[1]), int(sys.argv[2])
    FORM = RowFormat(192, 40, 190, 39, 191, 0, end_id=3)

    class Data(pl.LightningDataModule):
        """Batch n of rank r is number 2 n + r: one process with two micro-batches a step sees the same."""

        format = FORM

        def train_dataloader(self):
            batches = []
            ranks, rank = self.trainer.world_size, self.trainer.global_rank
            for n in range(rank, 2 * STEPS, ranks):
                g = torch.Generator().manual_seed(n)
                text = torch.randint(4, 190, (2, 24), generator=g)
                speech = torch.randint(192, 192 + 40, (2, 24), generator=g)
                rows = text.clone()
                rows[:, 1::2] = speech[:, 1::2]  # as many targets of each kind in every batch
                ids = torch.zeros(2, 24, dtype=torch.int32)
                batches.append(TokenBatch(rows, ids, torch.ones(2, 24, dtype=torch.bool), ["a"], 24))
            return DataLoader(batches, batch_size=None, shuffle=False)

    def whole(p):
        """A parameter from all its shards."""
        if hasattr(p, "full_tensor"):
            return p.detach().full_tensor().clone()
        if hasattr(p, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([p]):
                return p.detach().clone()
        return p.detach().clone()

    class States(pl.Callback):
        """All parameters after each step, and what the rules and rates were."""

        def __init__(self, path):
            self.path = path
            self.states: list[dict[str, Any]] = []
            self.computed = ""

        def note(self, trainer, module):
            parameters = {n: whole(p) for n, p in module.lm.named_parameters()}
            rates = {g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups}
            trained = str(next(p for p in module.parameters() if p.requires_grad).dtype)
            self.states.append(
                {"parameters": parameters, "rates": rates, "computed": self.computed, "trained": trained}
            )

        def on_train_start(self, trainer, module):
            projection = module.lm.model.shared_block.layers[0].self_attn.q_proj
            getattr(projection, "base_layer", projection).register_forward_pre_hook(self.look)
            self.note(trainer, module)

        def look(self, projection, args):
            self.computed = str(projection.weight.dtype)

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == len(self.states):
                self.note(trainer, module)

        def on_train_end(self, trainer, module):
            if trainer.is_global_zero:
                torch.save(self.states, self.path)

    class Module(SplitLLM):
        def configure_model(self):
            torch.manual_seed(5)
            super().configure_model()

    backbone = out / f"backbone{os.environ.get('LOCAL_RANK', 0)}"
    folder_of(backbone, "llama", hidden_size=32, intermediate_size=48, vocab_size=192,
              num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=4)  # fmt: skip
    parser = ArgumentParser()
    parser.add_argument("--strategy", type=pl.strategies.Strategy)
    for file, rules_name, precision in CASES[devices]:
        rule = {
            # The rates before the freezing: the order must not matter.
            "stages": [callbacks.LearningRateSchedule(warmup_steps=2), callbacks.StagedFreezing(STAGES)],
            "reverse": [callbacks.ReverseUnfreeze(k=DELAY, w=2)],
            "lora": [
                callbacks.StagedFreezing([{"policy": "lora"}]),
                callbacks.LearningRateSchedule(warmup_steps=2),
            ],
        }[rules_name]
        strategy: Any = "auto"
        if devices > 1:
            read = parser.parse_object({"strategy": settings(file)})
            strategy = parser.instantiate_classes(read).strategy
        trainer = pl.Trainer(
            accelerator="cpu", devices=devices, strategy=strategy, max_steps=STEPS, logger=False,
            gradient_clip_val=0.5, use_distributed_sampler=False, precision=precision,  # pyright: ignore
            accumulate_grad_batches=2 // devices, enable_checkpointing=False,
            callbacks=[*rule, States(out / f"{file}-{rules_name}-{precision}.pt")],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
        )  # fmt: skip
        adapters = Lora(rank=2, alpha=2.0) if rules_name == "lora" else None
        module = Module(str(backbone), num_modality_layers=1, lr=1e-2, lora=adapters)
        trainer.fit(module, datamodule=Data())
