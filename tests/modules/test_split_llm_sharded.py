"""DDP, FSDP2 and DeepSpeed through the command line, with the settings of conf/trainer: two gloo ranks, a
resume inside a stage, the next stage from shards.

Run as a script this file is several runs in the same two ranks, since processes take longer to start than to
train: `test_split_llm_sharded.py FOLDER [STRATEGY/RUN STEPS [--ckpt_path last]] ...`, as one argument each.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from lm_recipe import lm_recipe
from recording import assert_equal, checkpoints, curves, seen
from sharded import ROOT, settings, start_ranks, wait_for

from lit_moss.runs.checkpoints import is_whole, load_checkpoint

STAGES = [{"policy": "stage1", "until_step": 7}, {"policy": "full"}]
STRATEGIES = ["ddp", "fsdp2", *(["deepspeed_2"] if find_spec("deepspeed") else [])]
TIMED = ("train/tflops", "train/memory_gib")


def recipe(folder, steps, strategy):
    path = lm_recipe(folder, steps, stages=STAGES)
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"devices": 2, "strategy": settings(strategy)}
    if strategy == "ddp":
        config["data"]["init_args"]["workers"] = 2
    else:  # shards are kept at 10 and 20 alone; numbers drawn by ranks are DDP's case
        kept = [c for c in config["trainer"]["callbacks"] if not c["class_path"].endswith("DrawNumbers")]
        for c in kept:
            if c["class_path"] == "callbacks.Checkpoint":
                c["init_args"]["every_n_steps"] = 10
        config["trainer"]["callbacks"] = kept
    path.write_text(yaml.safe_dump(config))


@pytest.mark.nightly
def test_resume_on_two_ranks_and_a_next_stage_from_them(tmp_path):
    for strategy in STRATEGIES:
        for run in ("whole", "parts"):
            recipe(tmp_path / strategy / run, 20, strategy)
    # One process starts the other, as Lightning does on one machine.
    runs = [f"{s}/{run} {steps}" for s in STRATEGIES for run, steps in (("whole", 20), ("parts", 10))]
    wait_for(start_ranks(1, tmp_path, __file__, str(tmp_path), *runs), tmp_path)
    # Processes that begin by resuming, started side by side as on a cluster.
    runs = [f"{s}/parts 20 --ckpt_path last" for s in STRATEGIES]
    wait_for(start_ranks(2, tmp_path, __file__, str(tmp_path), *runs), tmp_path)
    for strategy in STRATEGIES:
        folder = tmp_path / strategy
        ours, theirs = (
            {k: v for k, v in curves(folder / name).items() if k not in TIMED} for name in ("parts", "whole")
        )
        assert ours == theirs, strategy
        assert seen(folder / "parts", 2) == seen(folder / "whole", 2), strategy
    equal_to_the_bit(tmp_path / "ddp")
    for strategy in STRATEGIES[1:]:
        weights_of_shards(tmp_path / strategy)


def equal_to_the_bit(folder):
    states = checkpoints(folder / "whole")
    ours, theirs = checkpoints(folder / "parts")["step-0000020.ckpt"], states["step-0000020.ckpt"]
    for part in ("state_dict", "optimizer_states", "random_states", "global_step"):
        assert_equal(ours[part], theirs[part], part)
    # The trunk begins at step 7.
    from lit_moss.llm import SplitLM

    key = "model.shared_block.layers.0.mlp.up_proj.weight"
    start = SplitLM.from_backbone(folder / "backbone", 1, 128).state_dict()[key]
    assert torch.equal(states["step-0000005.ckpt"]["state_dict"][f"lm.{key}"], start)
    assert not torch.equal(states["step-0000015.ckpt"]["state_dict"][f"lm.{key}"], start)


def weights_of_shards(folder):
    parts, whole = (
        sorted(folder.glob(f"{run}/runs/tiny/*/checkpoints/*.ckpt"))[-1] for run in ("parts", "whole")
    )
    assert parts.is_dir()
    assert parts.name == whole.name == "step-0000020.ckpt"
    ours, theirs = (load_checkpoint(p)["state_dict"] for p in (parts, whole))
    assert_equal(ours, theirs, "weights")

    # One process takes the weights over.
    from lit_moss.data.documents import read_documents
    from lit_moss.hub.lm import open_lm
    from lit_moss.llm import SplitLM
    from lit_moss.llm.stages import load_initial_weights

    form = read_documents(folder / "interleaved-train").format
    lm = SplitLM.from_backbone(folder / "backbone", 1, 128, row_format=form)
    load_initial_weights(lm, load_checkpoint(parts), str(parts))
    wanted = {k.removeprefix("lm."): v for k, v in ours.items()}
    assert all(torch.equal(v, wanted[k]) for k, v in lm.state_dict().items())

    # So do studies of a run, which know nothing but its folder.
    studied = open_lm(parts.parents[1])
    assert studied.format == form
    assert all(torch.equal(v, wanted[k]) for k, v in studied.state_dict().items())

    # A folder that lost bytes is not taken.
    victim = max((f for f in parts.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-10])
    assert not is_whole(parts)


if __name__ == "__main__":
    from lit_moss.cli.main import main

    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    top = Path(sys.argv[1])
    for number, words in enumerate(sys.argv[2:]):
        name, steps, *more = words.split()
        os.chdir(top / name)
        if number:  # of the run before; the first one's is what Lightning hands to the other rank
            os.environ.pop("LIT_MOSS_RUN", None)
            more = more or ["--run_name", "same on both ranks"]
        code = main(["fit", "-c", "conf.yaml", "--trainer.max_steps", steps, *more])
        if code:
            sys.exit(code)
