"""A small random vocoder for tests, and a recipe that trains one."""

import torch
import yaml
from recording import recipe

from lit_moss.codec.trained_vocoder import TrainedVocoder
from lit_moss.codec.vocoder_net import VocoderConfig, VocoderNet

SMALL = {"channels": 16, "inner": 32, "blocks": 2, "lookahead_frames": 2}
DISCRIMINATORS = {"periods": [3], "period_channels": [4, 8], "windows": [256], "window_channels": 4}


def small_vocoder(seed=0, **changes) -> TrainedVocoder:
    torch.manual_seed(seed)
    net = VocoderNet(VocoderConfig(**(SMALL | changes)))
    with torch.no_grad():  # as initialised, its output hardly depends on anything
        for parameter in net.parameters():
            parameter.mul_(3.0)
    return TrainedVocoder(net.requires_grad_(False), {"steps": 7})


def vocoder_recipe(folder, corpus, steps, adversarial_from_step=None, **changes):
    """The tiny recipe of the other stages with this stage's model and data."""
    model = {"net": SMALL, "examples": 2, "lr": 3e-3, "adversarial_from_step": adversarial_from_step}
    if adversarial_from_step is not None:
        model["discriminators"] = DISCRIMINATORS
    path = recipe(
        folder, corpus, steps,
        model={"class_path": "lit_moss.modules.Vocoder", "init_args": model},
        data={"class_path": "lit_moss.data.VocoderDataModule",
              "init_args": {"train": [str(corpus / "train.jsonl")], "workers": 0, "seed": 1,
                            "validation": [str(corpus / "validation.jsonl")], "crop_sec": 0.4,
                            "batch_sec": 1.6, "max_sec": 10}},
        **changes,
    )  # fmt: skip
    content = yaml.safe_load(path.read_text())
    callbacks = [c for c in content["trainer"]["callbacks"] if "val/cer" not in str(c)]
    callbacks += [
        {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}},
        {"class_path": "callbacks.VocoderReport"},
        {"class_path": "callbacks.Checkpoint", "init_args": {"monitor": "val/loss"}},
    ]
    content["trainer"]["callbacks"] = callbacks
    path.write_text(yaml.safe_dump(content))
    return path
