"""With averaged weights `save_frozen: false` left nothing out: the current weights were saved whole.

Before that the language model could not be averaged at all: the sums of its validations could not be copied.
"""

import copy

import pytest
import torch
import yaml
from lm_recipe import lm_recipe
from recording import fit

from lit_moss.llm.metrics import LossSums
from lit_moss.modules import SplitLLM

EMA = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}


def test_the_module_can_be_copied():
    assert copy.deepcopy(SplitLLM(speech_weight=0.5)).weights == {"text": 1.0, "speech": 0.5}
    sums = copy.deepcopy(LossSums(torch.device("cpu"), {"speech": 0.5}))
    assert sums.metrics(lambda x: x) == {}


@pytest.mark.nightly
def test_frozen_weights_are_left_out_of_average_and_current_ones(tmp_path):
    def newest(name, steps, *words):
        path = lm_recipe(tmp_path / name, steps, save_frozen=False)
        config = yaml.safe_load(path.read_text())
        own = [c for c in config["trainer"]["callbacks"] if c["class_path"].startswith("callbacks.")]
        config["trainer"]["callbacks"] = [EMA, *own]
        path.write_text(yaml.safe_dump(config))
        fit(path.parent, path, *words)
        (folder,) = path.parent.glob("runs/tiny/*/checkpoints")
        return torch.load(max(folder.glob("step-*.ckpt")), weights_only=True)

    newest("pieces", 5)
    checkpoints = [newest("pieces", 10, "--ckpt_path", "last"), newest("whole", 10)]
    for key in ("state_dict", "current_model_state"):
        resumed, whole = (checkpoint[key] for checkpoint in checkpoints)
        assert resumed.keys() == whole.keys()
        assert resumed.keys()
        assert all("audio" in name for name in resumed)  # stage 1 trains nothing else
        assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert not torch.equal(*(whole[key]["lm.audio_lm_head.weight"] for whole in checkpoints[1:]
                             for key in ("state_dict", "current_model_state")))  # fmt: skip
