"""The paper's recipes: they parse, their numbers are the paper's, and the model of them exists on the
meta device."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import Qwen3Config

from lit_moss.llm import SplitLM
from lit_moss.llm.lora import Lora, add_adapters, is_adapter
from lit_moss.llm.parts import named_parts

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(
    p
    for p in (ROOT / "conf/paper").glob("*.yaml")
    if p.stem not in ("codec_encoder", "flow_decoder", "vocoder")
)
# Qwen3-8B's sizes, as the released model's manifest has them.
QWEN3_8B = {"vocab_size": 151680, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_rows_a_step_are_those_the_head_states_and_the_papers(path):
    text = path.read_text()
    conf = yaml.safe_load(text)
    data, trainer = conf["data"]["init_args"], conf["trainer"]
    rows = data["context"] * data["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"]
    stated = int(re.search(r"= ([\d,]+) \(", text).group(1).replace(",", ""))
    assert rows == stated
    tuning = {"sft": 8 * 10240, "finetune_lora": 8 * 10240}
    wanted = tuning.get(path.stem, 2.8e6 if "stage2" in path.stem else 2.2e6)
    assert abs(rows / wanted - 1) < 0.02
    assert conf["name"] == f"paper_{path.stem}"  # else `last` would mix them with the small ones
    lr = conf["model"]["init_args"]["lr"]
    assert lr == {"sft": 1e-5, "finetune_lora": 1e-4}.get(path.stem, 6e-5 if "stage2" in path.stem else 4e-4)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_its_model_exists_on_the_meta_device(path):
    options = yaml.safe_load(path.read_text())["model"]["init_args"]
    joint = options.get("joint", False)
    with torch.device("meta"):
        lm = SplitLM.from_backbone(
            Qwen3Config(**QWEN3_8B), 0 if joint else options["num_modality_layers"], joint=joint
        )
    count = sum(p.numel() for p in lm.parameters())
    assert round(count / 1e9, 4) == (
        8.3239 if joint else 9.0957
    )  # 36 layers and one table more; the released model


@pytest.mark.slow
def test_memory_of_adapters_adds_up_to_what_its_head_states():
    text = (ROOT / "conf/paper/finetune_lora.yaml").read_text()
    conf = yaml.safe_load(text)
    with torch.device("meta"):
        lm = SplitLM.from_backbone(Qwen3Config(**QWEN3_8B), 4)
        frozen = sum(p.numel() for p in lm.parameters())
        add_adapters(lm, Lora(**conf["model"]["init_args"]["lora"]))
    sizes = [p.numel() for name, p in lm.named_parameters() if is_adapter(name)]
    assert f"{sum(sizes):,} weights of adapters" in text
    assert len(sizes) == 2 * 7 * 40
    rows, width = conf["data"]["init_args"]["context"], QWEN3_8B["hidden_size"]
    table = 16512 * width
    gigabytes = [
        2 * frozen + 2 * table,  # bfloat16, and two bytes more for each weight of the table
        16 * sum(sizes),
        40 * rows * width * 4,
        16 * rows * QWEN3_8B["intermediate_size"] * 2,
        0.7e9,
    ]
    stated = [float(x) for x in re.findall(r"^#\s+(\d+\.\d)  ", text, re.MULTILINE)]
    assert stated[:-1] == pytest.approx([x / 1e9 for x in gigabytes], abs=0.06)
    assert stated[-1] == pytest.approx(sum(stated[:-1]), abs=0.05)


def test_the_vocoder_has_the_sizes_and_the_batch_that_its_head_states():
    from lit_moss.codec.vocoder_net import VocoderConfig, VocoderNet

    conf = yaml.safe_load((ROOT / "conf/paper/vocoder.yaml").read_text())
    with torch.device("meta"):
        net = VocoderNet(VocoderConfig(**conf["model"]["init_args"]["net"]))
    # Vocos: 13.5 M, with 100 bands and a window of 1024.
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(13.9e6, rel=0.02)
    data = conf["data"]["init_args"]
    assert round(data["batch_sec"] / data["crop_sec"]) == 16
    assert conf["name"] == "paper_vocoder"


# Rows of an epoch of speech (stage1.yaml), and tokens of stage 2's text, as the cards of its parts state:
# FineWeb-Edu, and Chinese FineWeb-Edu V2.1 with a score of 3 or more.
SPEECH, TEXT = 150e9, 1.3e12 + 0.53e12 + 0.046e12


@pytest.mark.parametrize(
    ("stem", "speech", "text"),
    [
        ("stage1", 1, 0.0),
        *(
            (stem, 2, 0.1)
            for stem in ("stage2_full", "stage2_shared", "stage2_layerwise", "nf", "nf_nosplit")
        ),
    ],
)
def test_steps_are_the_papers_epochs(stem, speech, text):
    content = (ROOT / f"conf/paper/{stem}.yaml").read_text()
    conf = yaml.safe_load(content)
    data, trainer = conf["data"]["init_args"], conf["trainer"]
    rows = data["context"] * data["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"]
    assert rows * trainer["max_steps"] == pytest.approx(speech * SPEECH + text * TEXT, rel=0.015)
    assert f"{trainer['max_steps']:,} steps" in content
    first, *others = data["epochs"]
    assert speech / first == pytest.approx(text / others[-1] if text else speech)


# Sizes of the backbones' configs.
BACKBONES = {
    "Qwen3-0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                   "num_attention_heads": 16, "tie_word_embeddings": True},
    "Qwen3-1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
                   "num_attention_heads": 16, "tie_word_embeddings": True},
    "Qwen3-8B": {"tie_word_embeddings": False},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_what_fits_is_what_the_page_about_machines_says(name):
    with torch.device("meta"):
        lm = SplitLM.from_backbone(Qwen3Config(**QWEN3_8B | BACKBONES[name]), 4)
    parts = {part: sum(p.numel() for _, p in named) for part, named in named_parts(lm).items()}
    with torch.device("meta"):
        add_adapters(lm, Lora(rank=16))
    adapters = sum(p.numel() for name, p in lm.named_parameters() if is_adapter(name))
    table = lm.model.audio_embed.weight.numel()  # in float32
    weights = sum(parts.values())
    trained = sum(count for part, count in parts.items() if part.startswith("audio"))
    lora = 2 * weights + 2 * table + 16 * adapters
    sizes = [weights, lora, 2 * (weights - trained) + 16 * trained, 16 * weights, 2 * weights]
    page = (ROOT / "docs/machines.md").read_text()
    row = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", page, re.MULTILINE)
    assert row is not None
    stated = [float(cell.split()[0]) for cell in row[1].split("|")]
    assert stated == pytest.approx([x / 1e9 for x in sizes], rel=0.05)


def test_layerwise_total_exceeds_what_appendix_d_needs():
    conf = yaml.safe_load((ROOT / "conf/paper/stage2_layerwise.yaml").read_text())
    unfreeze = next(c for c in conf["trainer"]["callbacks"] if c["class_path"].endswith("ReverseUnfreeze"))[
        "init_args"
    ]
    assert conf["trainer"]["max_steps"] > 31 * unfreeze["k"] + unfreeze["w"] == 157_000
