"""The average of weights that do not change differed from them in the last bit, after some steps.

A checkpoint of stage 1 then held another text model than the backbone, and with `save_frozen: false` the run
could not be resumed.
"""

import glob

import pytest
import torch
import yaml
from lm_recipe import lm_recipe

from lit_moss.cli.main import main
from lit_moss.llm import SplitLM

EMA = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.99}}


@pytest.mark.slow
def test_a_frozen_text_model_stays_the_backbone_in_the_average(tmp_path, monkeypatch):
    for steps, words in ((6, []), (10, ["--ckpt_path", "last"])):
        path = lm_recipe(tmp_path / "run", steps, save_frozen=False)
        config = yaml.safe_load(path.read_text())
        callbacks = config["trainer"]["callbacks"]
        own = [c for c in callbacks if not c["class_path"].startswith(("recording", "poison"))]
        config["trainer"]["callbacks"] = [EMA, *own]
        path.write_text(yaml.safe_dump(config))
        monkeypatch.chdir(path.parent)
        assert main(["fit", "-c", str(path), *words]) == 0
    (newest,) = glob.glob("runs/tiny/*/checkpoints/step-0000010.ckpt")
    checkpoint = torch.load(newest, weights_only=True)
    own = SplitLM.from_backbone(tmp_path / "backbone", 1, 128).state_dict()
    for key in ("state_dict", "current_model_state"):
        text = {k[3:]: v for k, v in checkpoint[key].items() if k.startswith("lm.") and "audio" not in k}
        assert all(torch.equal(value, own[name]) for name, value in text.items())
    heads = [checkpoint[key]["lm.audio_lm_head.weight"] for key in ("state_dict", "current_model_state")]
    assert not torch.equal(*heads)  # what trains is averaged
