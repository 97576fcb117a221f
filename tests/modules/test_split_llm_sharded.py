"""Sharded strategies through the command line: a resume inside a stage, the next stage from shards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lm_recipe import lm_recipe
from recording import assert_equal, curves, seen

from lit_moss.checkpoints import is_whole, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
STAGES = [{"policy": "stage1", "until_step": 7}, {"policy": "full"}]
STRATEGIES = {
    "fsdp2": {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "process_group_backend": "gloo"},
    },
    "zero2": {
        "class_path": "sharded.OnCPU",
        "init_args": {"stage": 2, "process_group_backend": "gloo", "logging_batch_size_per_gpu": 2},
    },
}


def fit(folder, steps, strategy, *more):
    config = lm_recipe(folder, steps, stages=STAGES)
    content = yaml.safe_load(config.read_text())
    content["trainer"] |= {"devices": 2, "strategy": STRATEGIES[strategy], "use_distributed_sampler": False}
    content["trainer"]["callbacks"] = [
        c for c in content["trainer"]["callbacks"] if not c["class_path"].endswith("DrawNumbers")
    ]
    for c in content["trainer"]["callbacks"]:
        if c["class_path"] == "callbacks.Checkpoint":
            c["init_args"]["every_n_steps"] = 10
    config.write_text(yaml.safe_dump(content))
    left_out = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LIT_MOSS_RUN")
    env = {k: v for k, v in os.environ.items() if k not in left_out}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "lit_moss", "fit", "-c", str(config), *more],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return sorted(folder.glob("runs/tiny/*/checkpoints/*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resume_from_shards_and_a_next_stage_from_them(tmp_path, strategy):
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    whole = fit(tmp_path / "whole", 20, strategy)[-1]
    fit(tmp_path / "parts", 10, strategy)
    parts = fit(tmp_path / "parts", 20, strategy, "--ckpt_path", "last")[-1]
    assert parts.is_dir()
    assert parts.name == whole.name == "step-0000020.ckpt"
    ours, theirs = (load_checkpoint(p)["state_dict"] for p in (parts, whole))
    assert_equal(ours, theirs, "weights")
    timed = ("train/tflops", "train/memory_gib")
    ours, theirs = (curves(tmp_path / name) for name in ("parts", "whole"))
    assert {k: v for k, v in ours.items() if k not in timed} == {
        k: v for k, v in theirs.items() if k not in timed
    }
    assert seen(tmp_path / "parts", 2) == seen(tmp_path / "whole", 2)

    # One process takes the weights over.
    from lit_moss.llm import SplitLM
    from lit_moss.modules import SplitLLM

    lm = SplitLM.from_backbone(tmp_path / "backbone", 1, 128, row_format=_format(tmp_path))
    SplitLLM._load_stage(lm, str(parts))
    wanted = {k.removeprefix("lm."): v for k, v in load_checkpoint(parts)["state_dict"].items()}
    assert all(torch.equal(v, wanted[k]) for k, v in lm.state_dict().items())

    # A folder that lost bytes is not taken.
    victim = max((f for f in parts.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-10])
    assert not is_whole(parts)


def _format(folder):
    from lit_moss.data.documents import read_documents

    return read_documents(folder / "interleaved-train").format
