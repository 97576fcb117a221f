"""Language models by name: a run, its checkpoint, a folder."""

import json

import pytest
import torch
import yaml
from lm_recipe import backbone_folder

from lit_moss.errors import UserError
from lit_moss.hub import open_lm
from lit_moss.llm import SplitLM
from lit_moss.runs.checkpoint_io import AtomicCheckpointIO


@pytest.fixture
def run(tmp_path):
    """A run's folder with one checkpoint, and the weights in it."""
    backbone = backbone_folder(tmp_path / "backbone")
    lm = SplitLM.from_backbone(backbone, 1, 128)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.5)
    folder = tmp_path / "runs" / "tiny" / "one"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": "x"}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"backbone": str(backbone)}}}))
    state = {f"lm.{name}": value for name, value in lm.state_dict().items()}
    checkpoint = {"state_dict": state, "split_config": lm.config.to_dict(), "global_step": 5}
    AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "checkpoints" / "step-0000005.ckpt")
    lm.save_pretrained(tmp_path / "saved")
    return folder, lm


def test_every_name_opens_the_same_model(run, tmp_path):
    folder, lm = run
    names = (folder, folder.parent, folder / "checkpoints" / "step-0000005.ckpt", tmp_path / "saved")
    for name in names:
        random_state = torch.get_rng_state()
        opened = open_lm(name)
        assert torch.equal(torch.get_rng_state(), random_state)
        assert not opened.training
        assert opened.format == lm.format
        assert all(torch.equal(value, lm.state_dict()[key]) for key, value in opened.state_dict().items())


def test_a_checkpoint_that_cannot_be_opened_is_one_line(run, tmp_path):
    folder, _ = run
    checkpoint = folder / "checkpoints" / "step-0000005.ckpt"
    (tmp_path / "a.ckpt").write_bytes(checkpoint.read_bytes())
    with pytest.raises(UserError, match="does not state its backbone"):
        open_lm(tmp_path / "a.ckpt")
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="no checkpoint of a language model"):
        open_lm(tmp_path / "b.ckpt")
