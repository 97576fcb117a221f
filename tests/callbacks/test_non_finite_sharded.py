"""A step that is not finite on one rank moves no shard on any: FSDP2, DeepSpeed's ZeRO-2 and ZeRO-3."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
STEPS, BAD = 5, [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "zero2", "zero3"])
def test_no_shard_moves_in_a_step_that_is_not_finite(tmp_path, strategy):
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    env = {k: v for k, v in os.environ.items() if k != "LIT_MOSS_RUN"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, __file__, strategy, str(tmp_path)], cwd=tmp_path, env=env,
                          capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for step, (before, after) in enumerate(pairwise(found["states"])):
        assert all(torch.equal(before[k], after[k]) for k in after) == (step in BAD), step
    assert found["skipped"] == len(BAD)


if __name__ == "__main__":
    import lightning.pytorch as pl
    from poison import Poison
    from torch.utils.data import DataLoader

    from callbacks import NonFiniteSteps
    from lit_moss.modules.steps import StepModule

    strategy_name, out = sys.argv[1], Path(sys.argv[2])

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

    strategy: Any
    if strategy_name == "fsdp2":
        from lightning.pytorch.strategies import ModelParallelStrategy

        strategy = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        )
    else:
        from sharded import OnCPU

        stage = int(strategy_name[-1])
        strategy = OnCPU(stage=stage, process_group_backend="gloo", logging_batch_size_per_gpu=2)
    states, guard = States(), NonFiniteSteps()
    poison = [Poison([BAD[0]], "loss", rank=1), Poison([BAD[1]], "loss", rank=0)]
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_steps=STEPS, logger=False, gradient_clip_val=0.5,
        use_distributed_sampler=False, callbacks=[*poison, guard, states], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
    )  # fmt: skip
    points: Any = torch.randn(20, 8)
    trainer.fit(Tiny(), DataLoader(points, batch_size=2))
    if trainer.is_global_zero:
        torch.save({"states": states.states, "skipped": guard.skipped}, out / "found.pt")
