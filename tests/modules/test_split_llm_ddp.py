"""T2: two gloo ranks, two loader workers each; resumed runs equal whole ones, freezing holds, ranks agree."""

import launch
import pytest
import torch
import yaml
from lm_recipe import lm_recipe
from recording import assert_equal, checkpoints, curves, seen

pytestmark = pytest.mark.slow
# Layer-wise unfreezing under DDP and the sharded strategies: tests/callbacks/test_sharded.py.
STAGES = {
    "stage1 then full": {"stages": [{"policy": "stage1", "until_step": 7}, {"policy": "full"}]},
}


def two_ranks(folder, steps, *more, **options):
    path = lm_recipe(folder, steps, **options)
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    config["data"]["init_args"]["workers"] = 2
    path.write_text(yaml.safe_dump(config))
    done = launch.run(folder, "fit", "-c", str(path), *more, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("stage", STAGES)
def test_t2_resume_under_ddp(tmp_path, stage):
    two_ranks(tmp_path / "whole", 20, **STAGES[stage])
    two_ranks(tmp_path / "parts", 10, **STAGES[stage])
    two_ranks(tmp_path / "parts", 20, "--ckpt_path", "last", **STAGES[stage])
    ours, theirs = (checkpoints(tmp_path / f)["step-0000020.ckpt"] for f in ("parts", "whole"))
    for part in ("state_dict", "optimizer_states", "random_states", "global_step"):
        assert_equal(ours[part], theirs[part], part)
    timed = ("train/tflops", "train/memory_gib")
    kept = [{k: v for k, v in curves(tmp_path / f).items() if k not in timed} for f in ("parts", "whole")]
    assert kept[0] == kept[1]
    assert seen(tmp_path / "parts", ranks=2) == seen(tmp_path / "whole", ranks=2)
    # The trunk begins at step 7.
    key = "lm.model.shared_block.layers.0.mlp.up_proj.weight"
    states = checkpoints(tmp_path / "whole")
    assert torch.equal(states["step-0000005.ckpt"]["state_dict"][key], states_at_start(tmp_path)[key[3:]])
    assert not torch.equal(states["step-0000015.ckpt"]["state_dict"][key], states_at_start(tmp_path)[key[3:]])


def states_at_start(tmp_path):
    from lit_moss.llm import SplitLM

    return SplitLM.from_backbone(tmp_path / "backbone", 1, 128).state_dict()
