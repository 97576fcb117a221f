"""Freezing and rates on two ranks against one process: DDP, FSDP2, DeepSpeed ZeRO-2 and ZeRO-3, over gloo.

Run as a script this file is one training: `test_sharded.py STRATEGY RULES FOLDER` writes every parameter
and rate after every step to FOLDER/states.pt.
"""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
# Stage 1 until step 4, then everything but one part, which never trains.
STAGES = [{"policy": "stage1", "until_step": 4}, {"policy": "full", "freeze": ["text_head"]}]
DELAY = 3  # steps between two of the three trunk layers


def run(strategy, rules, folder):
    """The states of one training, in processes of its own."""
    env = {
        k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LIT_MOSS_RUN")
    }
    env |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, __file__, strategy, rules, str(folder)],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "states.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """States of one process, by rules."""
    return {rules: run("one", rules, tmp_path_factory.mktemp(rules)) for rules in ("stages", "reverse")}


def trains(name, rules, step):
    """Whether a parameter may move in the step from `step` to `step + 1`, spelt out."""
    if rules == "stages":
        return "audio" in name if step < 4 else not name.startswith("text_lm_head")
    layer = [i for i in range(3) if name.startswith(f"model.shared_block.layers.{i}.")]
    # At the step on which a layer begins its rate is 0 (u = 0 of appendix D).
    return not layer or step > (2 - layer[0]) * DELAY


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["stages", "reverse"])
@pytest.mark.parametrize("strategy", ["one", "ddp", "fsdp2", "zero2", "zero3"])
def test_what_is_frozen_moves_by_0_and_the_rest_as_in_one_process(tmp_path, alone, strategy, rules):
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    states = alone[rules] if strategy == "one" else run(strategy, rules, tmp_path)
    assert len(states) == STEPS + 1
    for step, (before, after) in enumerate(pairwise(states)):
        # Of the 232 rows of both tables not all occur in a step: tables move as wholes.
        for name, value in after["parameters"].items():
            same = torch.equal(before["parameters"][name], value)
            assert same != trains(name, rules, step), (step, name)
    for step, (ours, theirs) in enumerate(zip(states, alone[rules], strict=True)):
        if step:
            assert ours["rates"] == theirs["rates"]
        for name, value in ours["parameters"].items():
            # Sums of two ranks round otherwise, and Adam's first step divides by them.
            assert (value - theirs["parameters"][name]).abs().max() < 5e-5, (step, name)


if __name__ == "__main__":
    import lightning.pytorch as pl
    from backbones import folder_of
    from torch.utils.data import DataLoader

    import callbacks
    from lit_moss.data.tokens import TokenBatch
    from lit_moss.llm.rows import RowFormat
    from lit_moss.modules import SplitLLM

    strategy_name, rules_name, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
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

        def __init__(self):
            self.states: list[dict[str, Any]] = []

        def note(self, trainer, module):
            parameters = {n: whole(p) for n, p in module.lm.named_parameters()}
            rates = {g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups}
            self.states.append({"parameters": parameters, "rates": rates})

        def on_train_start(self, trainer, module):
            self.note(trainer, module)

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == len(self.states):
                self.note(trainer, module)

        def on_train_end(self, trainer, module):
            if trainer.is_global_zero:
                torch.save(self.states, out / "states.pt")

    class Module(SplitLLM):
        def configure_model(self):
            torch.manual_seed(5)
            super().configure_model()

    devices, accumulate = (1, 2) if strategy_name == "one" else (2, 1)
    strategy: Any = {"one": "auto", "ddp": "ddp"}.get(strategy_name)
    if strategy_name == "fsdp2":
        from lightning.pytorch.strategies import ModelParallelStrategy

        strategy = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        )
    if strategy_name.startswith("zero"):
        from sharded import OnCPU

        strategy = OnCPU(
            stage=int(strategy_name[-1]), process_group_backend="gloo", logging_batch_size_per_gpu=2
        )

    if int(os.environ.get("LOCAL_RANK", 0)) == 0 and not (out / "backbone").exists():
        folder_of(out / "backbone", "llama", hidden_size=32, intermediate_size=48, vocab_size=192,
                  num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=4)  # fmt: skip
    states = States()
    rule = {
        # The rates before the freezing: the order must not matter.
        "stages": [callbacks.LearningRateSchedule(warmup_steps=2), callbacks.StagedFreezing(STAGES)],
        "reverse": [callbacks.ReverseUnfreeze(k=DELAY, w=2)],
    }[rules_name]
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_steps=STEPS, logger=False,
        gradient_clip_val=0.5, use_distributed_sampler=False,
        accumulate_grad_batches=accumulate, callbacks=[*rule, states], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
    )  # fmt: skip
    module = Module(str(out / "backbone"), num_modality_layers=1, lr=1e-2, first_validation=False)
    trainer.fit(module, datamodule=Data())
