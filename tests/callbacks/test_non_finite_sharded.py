"""A step that is not finite on one rank moves no shard on any: FSDP2, DeepSpeed's ZeRO-2 and ZeRO-3."""

import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded import start_ranks, wait_for

STEPS, BAD = 5, [1, 3]
STRATEGIES = ["fsdp2", *(["zero2", "zero3"] if find_spec("deepspeed") else [])]


@pytest.mark.nightly
def test_no_shard_moves_in_a_step_that_is_not_finite(tmp_path):
    wait_for(start_ranks(2, tmp_path, __file__, str(tmp_path)), tmp_path)
    for strategy in STRATEGIES:
        found = torch.load(tmp_path / f"{strategy}.pt", weights_only=True)
        for step, (before, after) in enumerate(pairwise(found["states"])):
            same = all(torch.equal(before[k], after[k]) for k in after)
            assert same == (step in BAD), (strategy, step)
        assert found["skipped"] == len(BAD), strategy


if __name__ == "__main__":
    import lightning.pytorch as pl
    from poison import Poison
    from torch.utils.data import DataLoader

    from callbacks import NonFiniteSteps
    from lit_moss.modules.steps import StepModule

    out = Path(sys.argv[1])

    class Tiny(StepModule):
        """Two layers, of which FSDP2 makes shards."""

        def configure_model(self):
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
            mesh = getattr(self, "device_mesh", None)
            if mesh is not None:
                from torch.distributed.fsdp import fully_shard

                fully_shard(self.net, mesh=mesh["data_parallel"])

        def training_step(self, batch, batch_idx):
            self.count_targets(1)
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return self.adamw([{"params": list(self.parameters())}], lr=0.1)

    class States(pl.Callback):
        """All parameters before the first and after every step."""

        def __init__(self):
            self.states: list[Any] = []

        def note(self, module):
            found = {}
            for name, p in module.named_parameters():
                if hasattr(p, "ds_id"):
                    import deepspeed

                    with deepspeed.zero.GatheredParameters([p]):
                        found[name] = p.detach().clone()
                else:
                    found[name] = (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
            self.states.append(found)

        def on_train_start(self, trainer, pl_module):
            self.note(pl_module)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.note(pl_module)

    def strategy_of(name: str) -> Any:
        if name == "fsdp2":
            from lightning.pytorch.strategies import ModelParallelStrategy

            return ModelParallelStrategy(
                data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
            )
        from sharded import OnCPU

        return OnCPU(stage=int(name[-1]), process_group_backend="gloo", logging_batch_size_per_gpu=2)

    for name in STRATEGIES:  # in the same two processes: they take longer to start than to train
        states, guard = States(), NonFiniteSteps()
        poison = [Poison([BAD[0]], "loss", rank=1), Poison([BAD[1]], "loss", rank=0)]
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, strategy=strategy_of(name), max_steps=STEPS, logger=False,
            gradient_clip_val=0.5, use_distributed_sampler=False, callbacks=[*poison, guard, states],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=out,
        )  # fmt: skip
        points: Any = torch.randn(20, 8)
        trainer.fit(Tiny(), DataLoader(points, batch_size=2))
        if trainer.is_global_zero:
            torch.save({"states": states.states, "skipped": guard.skipped}, out / f"{name}.pt")
