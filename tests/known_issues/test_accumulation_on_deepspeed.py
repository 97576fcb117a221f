"""With DeepSpeed, gradients of several micro-batches were divided by their number twice.

By Lightning and by the engine: with 24 micro-batches `gradient_clip_val: 1.0` clipped at 24. Run as a script
this file is the training: `test_accumulation_on_deepspeed.py FOLDER STRATEGY MICRO_BATCHES`.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from sharded import settings, start_ranks, wait_for

MICRO_BATCHES = 4


@pytest.mark.nightly
@pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed")
def test_micro_batches_move_the_weights_as_one_batch_does(tmp_path):
    found = {}
    for strategy, micro_batches in (
        ("auto", MICRO_BATCHES),
        ("deepspeed_2", MICRO_BATCHES),
        ("deepspeed_2", 1),
    ):
        folder = tmp_path / f"{strategy}-{micro_batches}"
        folder.mkdir()
        started = start_ranks(1, folder, __file__, str(folder), strategy, str(micro_batches))
        wait_for(started, folder)
        found[strategy, micro_batches] = json.loads((folder / "weights.json").read_text())
    whole, accumulated, once = found.values()
    assert whole["norms"][1] > 1.0  # it is clipped
    for ours in (accumulated, once):
        assert ours["norms"] == pytest.approx(whole["norms"], rel=1e-4)
        assert ours["weights"] == pytest.approx(whole["weights"], abs=1e-6)


if __name__ == "__main__":
    import lightning.pytorch as pl
    import torch
    from jsonargparse import ArgumentParser
    from torch.utils.data import DataLoader

    from lit_moss.modules.steps import StepModule

    class Line(StepModule):
        def __init__(self):
            super().__init__()
            self.line, self.norms, self.norm = torch.nn.Linear(4, 1, bias=False), [], 0.0
            self.line.weight.data.fill_(0.1)

        def training_step(self, rows, index):
            return (self.line(rows) ** 2).mean() * 100

        def on_before_optimizer_step(self, optimizer):
            gradients = [p.grad for p in self.parameters() if p.grad is not None]  # DeepSpeed keeps its own
            self.norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

        def on_train_batch_end(self, *_):
            if self.global_step > len(self.norms):
                known = getattr(self.trainer.model, "get_global_grad_norm", None)
                self.norms.append(float(known()) if known else self.norm)

        def configure_optimizers(self):
            return self.adamw([{"params": list(self.parameters()), "lr": 1e-2, "base_lr": 1e-2, "name": "a"}])

    folder, strategy, micro_batches = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(8 * MICRO_BATCHES, 4, generator=generator) * size for size in (0.1, 0.3, 0.1)]
    batches = [part for rows in steps for part in rows.chunk(micro_batches)]
    if strategy != "auto":
        parser = ArgumentParser()
        parser.add_argument("--strategy", type=pl.strategies.Strategy)
        strategy = parser.instantiate_classes(parser.parse_object({"strategy": settings(strategy)})).strategy
    module = Line()
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=strategy, max_steps=len(steps), logger=False,
                         accumulate_grad_batches=micro_batches, gradient_clip_val=1.0,
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                         use_distributed_sampler=False, default_root_dir=folder)  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    found = {"norms": module.norms, "weights": module.line.weight[0].tolist()}
    (folder / "weights.json").write_text(json.dumps(found))
