"""Every target of an optimizer step counts alike: two ranks of one micro-batch equal one rank of two.

Ranks were weighed by their targets, accumulated micro-batches were not: gradients differed up to twofold.
"""

import numpy as np
import pytest
import torch
import yaml
from lm_recipe import backbone_folder, conversations, lm_recipe
from recording import assert_equal, checkpoints, curves, fit, fit_in_process

from lit_moss.data import SFTDataModule
from lit_moss.data.packing import PackedBatches

pytestmark = pytest.mark.nightly
STEPS = 4


def uneven_recipe(folder, steps, **trainer):
    """Conversations of 2 to 80 targets, one a micro-batch."""
    keep = {"class_path": "poison.KeepGradients", "init_args": {"path": str(folder / "gradients")}}
    path = lm_recipe(folder, steps, kind="sft", stages=[{"policy": "full"}], extra=[keep])
    talks = folder.parent / "talks"
    if not talks.exists():
        rng = np.random.default_rng(0)
        lengths = rng.integers(60, 96, 24)
        masks = [[j >= n - (2 if i % 3 else n - 4) for j in range(n)] for i, n in enumerate(lengths)]
        conversations(talks, folder.parent / "backbone", lengths, masks)
    config = yaml.safe_load(path.read_text())
    config["data"]["init_args"] |= {"train": [str(talks)], "batch_size": 1, "seed": 1}
    config["trainer"] |= {"val_check_interval": 100} | trainer
    path.write_text(yaml.safe_dump(config))
    return path


def gradients(folder, rank=0):
    return torch.load(folder / f"gradients.{rank}", weights_only=True)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    fit_folder(folder, STEPS, accumulate_grad_batches=2)
    return folder


def fit_folder(folder, steps, *more, **trainer):
    path = uneven_recipe(folder, steps, **trainer)
    fit(folder, path, *more)


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for step, named in theirs.items():
        for name, value in named.items():
            scale = value.abs().max().clamp(min=1e-8)
            assert (ours[step][name] - value).abs().max() <= 1e-4 * scale, (step, name)


def test_two_ranks_of_one_micro_batch_equal_one_rank_of_two(one_rank):
    folder = one_rank.parent / "two"
    path = uneven_recipe(folder, STEPS, devices=2, strategy="ddp")
    done = fit_in_process(folder, path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close(gradients(folder), gradients(one_rank))


def test_accumulated_micro_batches_equal_one_batch_of_their_packs(one_rank):
    folder = one_rank.parent / "batch"
    path = uneven_recipe(folder, STEPS)
    config = yaml.safe_load(path.read_text())
    config["data"]["init_args"]["batch_size"] = 2
    path.write_text(yaml.safe_dump(config))
    fit(folder, path)
    # Weighed alike, the rare long answers would count several times less than here.
    assert_close(gradients(folder), gradients(one_rank))


def test_a_resumed_run_equals_the_whole_one(one_rank):
    folder = one_rank.parent / "parts"
    every = {"accumulate_grad_batches": 2}
    for part, steps in ((folder, 5), (one_rank.parent / "whole", 8)):
        fit_folder(part, steps, **every)
    fit_folder(folder, 8, "--ckpt_path", "last", **every)
    ours, theirs = (torch.load(next((one_rank.parent / f).glob("runs/tiny/*/checkpoints/step-0000005.ckpt")),
                               weights_only=True) for f in ("parts", "whole"))  # fmt: skip
    assert_equal(ours["state_dict"], theirs["state_dict"])
    assert curves(folder)["train/loss"] == curves(one_rank.parent / "whole")["train/loss"]
    assert {s: g for s, g in gradients(one_rank.parent / "whole").items() if s >= 5}.keys() == {5, 6, 7}
    assert_equal(gradients(folder), {s: g for s, g in gradients(one_rank.parent / "whole").items() if s >= 5})
    assert checkpoints(folder)


def test_targets_of_the_order_are_those_of_the_loaded_batches(tmp_path):
    backbone = backbone_folder(tmp_path / "backbone")
    rng = np.random.default_rng(0)
    talks = conversations(tmp_path / "talks", backbone, rng.integers(7, 96, 60))
    data = SFTDataModule(
        train=[str(talks)], backbone=str(backbone), speech_tokenizer="made up", context=96, batch_size=2
    )
    data.setup("fit")
    loader, order = data.train_dataloader(), data.order
    batches = [batch for batch, _ in zip(loader, range(40), strict=False)]
    for n, batch in enumerate(batches):
        assert batch.text_targets + batch.speech_targets == int(batch.loss_mask_BL.sum())
        assert data.targets_of(range(n, n + 1)) == int(batch.loss_mask_BL.sum())
    assert data.targets_of(range(40)) == sum(int(b.loss_mask_BL.sum()) for b in batches)
    assert PackedBatches(order, 2).keys(0)
