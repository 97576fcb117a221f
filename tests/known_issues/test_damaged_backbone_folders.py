"""A backbone's folder that lacks something is refused in one line; it trained on random numbers before, under
a warning of transformers, or ended in a library's traceback."""

import json

import pytest
import torch
from backbones import folder_of, other_config
from lm_recipe import tokenizer_of_bytes
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9876\n"


def rewrite(folder, change):
    """The weights, changed; `change` returns them anew."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(*names):
    return lambda tensors: {k: v for k, v in tensors.items() if k not in names}


def resave(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder, **options)


def lose_a_shard(folder):
    resave(folder, max_shard_size="60KB")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    files[1].unlink()


def only_bin(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def only_adapter(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


def cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def empty(folder):
    (folder / "model.safetensors").unlink()


def pointer(name):
    return lambda folder: (folder / name).write_text(POINTER)


def config_with(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tokenizer(folder, change):
    tokenizer_of_bytes().save_pretrained(folder)
    file = folder / "tokenizer.json"
    file.write_bytes(change(file.read_bytes()))


NORM = "model.layers.2.post_attention_layernorm.weight"
CASES = {
    "a tensor": (lambda f: rewrite(f, without("model.norm.weight", NORM)), f"lacks 2 of .*, first {NORM}"),
    "untied head": (lambda f: rewrite(f, without("lm_head.weight")), "lacks 1 of .*, first lm_head.weight"),
    "peft's prefix": (
        lambda f: rewrite(f, lambda t: {"base_model.model." + k: v for k, v in t.items()}),
        "first lm_head.weight .found as base_model.model.lm_head.weight",
    ),
    "peft inside": (
        lambda f: rewrite(f, lambda t: {k.replace("q_proj.", "q_proj.base_layer."): v for k, v in t.items()}),
        "first model.layers.0.self_attn.q_proj.weight",
    ),
    "adapter beside": (
        lambda f: rewrite(
            f, lambda t: t | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 64)}
        ),
        "does not have, first model.layers.0.self_attn.q_proj.lora_A.weight",
    ),
    "a bias too many": (
        lambda f: rewrite(f, lambda t: t | {"model.layers.1.self_attn.q_proj.bias": torch.ones(64)}),
        "does not have, first model.layers.1.self_attn.q_proj.bias",
    ),
    "other shape": (
        lambda f: rewrite(f, lambda t: t | {"model.norm.weight": torch.ones(63)}),
        r"model.norm.weight is \(63,\), config.json expects \(64,\)",
    ),
    "fewer layers in config.json": (config_with(num_hidden_layers=4), "first model.layers.4"),
    "more layers in config.json": (config_with(num_hidden_layers=6), "first model.layers.5"),
    "pointer": (pointer("model.safetensors"), "model.safetensors is a Git-LFS pointer"),
    "config pointer": (pointer("config.json"), "config.json is a Git-LFS pointer"),
    "bin alone": (only_bin, "found pytorch_model.bin"),
    "adapter alone": (only_adapter, "PEFT adapter"),
    "nothing": (empty, "no weights at all"),
    "lost shard": (lose_a_shard, r"lacks 1 of its \d+ weight files, first model-00002-of"),
    "cut": (cut, "model.safetensors is damaged"),
    "config no json": (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list"),
    "unknown kind": (config_with(model_type="nothing"), "'nothing'. is not accepted"),
    "whole numbers": (
        lambda f: rewrite(f, lambda t: {k: v.to(torch.int8) for k, v in t.items()}),
        "lm_head.weight is stored as I8, expected float32",
    ),
    "one of whole numbers": (
        lambda f: rewrite(f, lambda t: t | {"model.norm.weight": torch.ones(64, dtype=torch.int64)}),
        "model.norm.weight is stored as I64",
    ),
    "8-bit floats": (
        lambda f: rewrite(f, lambda t: {k: v.to(torch.float8_e4m3fn) for k, v in t.items()}),
        "is stored as F8_E4M3",
    ),
    "of several modalities": (config_with(model_type="qwen2_vl"), "qwen2_vl cannot be made"),
    "tokenizer cut": (lambda f: tokenizer(f, lambda b: b[: len(b) // 2]), "no tokenizer that can be read"),
    "tokenizer of other content": (lambda f: tokenizer(f, lambda b: b"{}"), "no tokenizer that can be read"),
    "quantized": (config_with(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized"),
}


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_backbone_is_one_line(tmp_path, case):
    folder, _ = folder_of(tmp_path, "llama")
    damage, message = CASES[case]
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        SplitLM.from_backbone(folder, 2, 40)
    assert "\n" not in str(error.value)


MODEL_CASES = {
    "a tensor": (
        lambda f: rewrite(f, without("model.audio_norm.weight")),
        "model.audio_norm.weight is missing",
    ),
    "other shape": (
        lambda f: rewrite(f, lambda t: t | {"model.text_norm.weight": torch.ones(63)}),
        r"model.text_norm.weight is \(63,\), expected \(64,\)",
    ),
    "one too many": (lambda f: rewrite(f, lambda t: t | {"x": torch.ones(1)}), "x is not the model's"),
    "pointer": (pointer("model.safetensors"), "Git-LFS pointer"),
    "config pointer": (pointer("config.json"), "Git-LFS pointer"),
    "bin alone": (only_bin, "found pytorch_model.bin"),
    "cut": (cut, "damaged"),
    "other kind": (config_with(backbone_model_type="nothing"), "'nothing'"),
    "whole numbers": (
        lambda f: rewrite(f, lambda t: t | {"model.text_norm.weight": torch.ones(64, dtype=torch.int64)}),
        "model.text_norm.weight is stored as I64",
    ),
    "an id as text": (config_with(sosp_token_id="x"), "sosp_token_id is 'x', expected a whole number"),
    "an id beyond": (config_with(eosp_token_id=40), "eosp_token_id is 40, expected an id below 40"),
    "no size": (config_with(audio_vocab_size=None), "audio_vocab_size is None"),
    "layers as text": (config_with(num_modality_layers="2"), "num_modality_layers is '2'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MODEL_CASES)
def test_a_damaged_split_model_is_one_line(tmp_path, case):
    folder, _ = folder_of(tmp_path / "backbone", "llama")
    SplitLM.from_backbone(folder, 2, 40).save_pretrained(tmp_path / "model")
    damage, message = MODEL_CASES[case]
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=message) as error:
        SplitLM.from_pretrained(tmp_path / "model")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"eos_token_id": []}, {"eos_token_id": None}, {"quantization_config": None}]
)
def test_settings_that_say_nothing_change_nothing(tmp_path, changes):
    folder, model = folder_of(tmp_path, "llama")
    config_with(**changes)(folder)
    rows = torch.arange(5, 40)[None]
    lm = SplitLM.from_backbone(folder, 2, 40).eval()
    lm.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        wanted = model(rows, use_cache=False).logits
        assert torch.equal(lm(rows).text_logits, wanted)
        assert torch.equal(SplitLM.from_pretrained(tmp_path / "saved")(rows).text_logits, wanted)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "phi3", "gemma", "apertus", "sarvam_moe"])
@pytest.mark.parametrize("shards", ["60KB", "5GB"])
def test_whole_folders_of_kinds_with_other_names_on_disk_are_read(tmp_path, kind, shards):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(other_config(kind), dtype=torch.float32).eval()
    model.save_pretrained(tmp_path, max_shard_size=shards)
    rows = torch.arange(5, 40)[None]
    lm = SplitLM.from_backbone(tmp_path, 2, 40).eval()
    lm.save_pretrained(tmp_path / "saved")  # neither views of one tensor nor numbers without dimension fail
    with torch.no_grad():
        wanted = lm(rows).text_logits
        assert torch.equal(wanted, model(rows, use_cache=False).logits)
        torch.testing.assert_close(SplitLM.from_pretrained(tmp_path / "saved")(rows).text_logits, wanted)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_beside_the_model_and_ties_change_nothing(tmp_path, tied):
    folder, model = folder_of(tmp_path, "llama", tie_word_embeddings=tied)
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"  # of old folders
    rewrite(folder, lambda t: t | {"v_head.summary.weight": torch.ones(1, 64), frequencies: torch.ones(8)})
    rows = torch.arange(5, 40)[None]
    lm = SplitLM.from_backbone(folder, 2, 40).eval()
    with torch.no_grad():
        assert torch.equal(lm(rows).text_logits, model(rows, use_cache=False).logits)


def test_a_tokenizer_that_is_a_pointer_is_one_line(tmp_path):
    folder, _ = folder_of(tmp_path, "llama")
    pointer("tokenizer.json")(folder)
    with pytest.raises(UserError, match=r"tokenizer.json is a Git-LFS pointer"):
        SplitLM.from_backbone(folder, 2, 40)
