"""Losses of 100 steps of each small language model recipe, as `conf/` has it, on a tiny backbone and made-up
documents, and of 40 steps of the decoder's on made-up sounds: a change of a schedule, a freezing rule, the
order of data or the loss shows here.

Equal to the bit on a machine as the one that made them, within 1e-5 elsewhere. A change must be explained;
LIT_MOSS_WRITE_GOLDEN=1 writes the file anew.
"""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from decoders import SMALL, made_up_codec, made_up_manifest
from lm_recipe import backbone_folder, documents_folder
from recording import curves, fit

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "losses.json"
GOLDEN_DECODER = Path(__file__).parent / "golden" / "decoder_losses.json"
# In this order: later ones start from earlier ones.
RECIPES = ["stage1", "stage2_full", "stage2_shared", "stage2_layerwise", "nf", "nf_nosplit", "sft"]
STEPS = 100


def machine() -> str:
    cpu = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    name = cpu[0].split(":")[1].strip() if cpu else "unknown"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def tiny(recipe: str, folder: Path) -> Path:
    """The recipe with its backbone, documents and step count swapped; everything else is its own."""
    config = yaml.safe_load((ROOT / "conf" / f"{recipe}.yaml").read_text())
    backbone = backbone_folder(folder / "backbone")
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    model["backbone"] = str(backbone)
    if "num_modality_layers" in model:
        model["num_modality_layers"] = 1
    data |= {"speech_tokenizer": None, "context": 96, "heldout_items": 0}
    for part in data.get("parts", [config["data"]]):
        kind = part["class_path"].rsplit(".", 1)[1].removesuffix("DataModule").lower()
        for seed, name in enumerate(("train", "validation")):
            if name in part["init_args"]:
                made = documents_folder(folder / f"{kind}-{name}", backbone, kind, (40, 6)[seed], seed)
                part["init_args"][name] = [str(made)]
    trainer |= {"accelerator": "cpu", "precision": "32-true", "max_steps": STEPS, "val_check_interval": STEPS,
                "log_every_n_steps": 1}  # fmt: skip
    path = folder / f"{recipe}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.nightly
def test_losses_of_every_small_recipe_are_the_recorded_ones(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    try:
        for recipe in RECIPES:
            fit(tmp_path, tiny(recipe, tmp_path))
            found[recipe] = [loss for _, loss in curves(tmp_path, recipe)["train/loss"]]
    finally:
        torch.set_num_threads(before)
    assert all(len(v) == STEPS for v in found.values())
    compare(found, GOLDEN)


def compare(found: dict[str, list[float]], file: Path) -> None:
    if os.environ.get("LIT_MOSS_WRITE_GOLDEN"):
        file.write_text(json.dumps({"machine": machine(), "losses": found}, indent=1) + "\n")
    golden = json.loads(file.read_text())
    exact = golden["machine"] == machine()
    for recipe, losses in found.items():
        far = [abs(a - b) / abs(b) for a, b in zip(losses, golden["losses"][recipe], strict=True)]
        step = max(range(len(far)), key=far.__getitem__)
        assert max(far) <= (0.0 if exact else 1e-5), f"{recipe}: {max(far):.2g} off at step {step + 1}"


@pytest.mark.slow
def test_losses_of_the_small_decoder_recipe_are_the_recorded_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    config = yaml.safe_load((ROOT / "conf/flow_decoder.yaml").read_text())
    sizes = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    config["model"]["init_args"] |= {"flow": sizes, "examples": 0}
    manifest = str(made_up_manifest(tmp_path / "sounds"))
    config["data"]["init_args"] |= {
        "speech_tokenizer": str(made_up_codec(tmp_path / "codec")),
        "speaker": None,
        "train": [manifest],
        "validation": [manifest],
        "workers": 0,
        "batch_sec": 20,
    }
    config["trainer"] |= {"accelerator": "cpu", "precision": "32-true", "max_steps": 40,
                          "val_check_interval": 40, "log_every_n_steps": 1}  # fmt: skip
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(tmp_path, tmp_path / "conf.yaml")
    finally:
        torch.set_num_threads(before)
    losses = [loss for _, loss in curves(tmp_path, "flow_decoder")["train/loss"]]
    assert len(losses) == 40
    compare({"flow_decoder": losses}, GOLDEN_DECODER)
