"""Faults of the language model that were once there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbones import backbone_of, config_of, folder_of, mixed_rows
from lm_recipe import backbone_folder, documents_folder, lm_recipe
from transformers import AutoModelForCausalLM, MistralConfig, SmolLM3Config

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.layers import DecoderLayer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
def test_generation_inside_autocast_is_generation_without(kind):
    """bf16-mixed `predict` gave bfloat16 rows to float32 weights: no such product."""
    lm = SplitLM.from_backbone(config_of(kind), 2, 40).eval()
    rows = mixed_rows(lm, 1, 9)[0].tolist()
    for modality in ("text", "speech"):
        options = {"max_new_tokens": 8, "greedy": True, "min_new_tokens": 4}
        wanted = lm.generate([*rows, 4], modality, **options)
        with torch.autocast("cpu", torch.bfloat16):
            assert lm.generate([*rows, 4], modality, **options) == wanted


def test_layers_that_compute_otherwise_stay_transformers_own():
    """Taken by the names of their parts alone, SmolLM3's layers lost their missing rotations."""
    torch.manual_seed(0)
    sizes = config_of("llama").to_dict()
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
            "num_key_value_heads", "initializer_range")  # fmt: skip
    config = SmolLM3Config(**{k: sizes[k] for k in keys}, pad_token_id=0, bos_token_id=1, eos_token_id=3)
    backbone = AutoModelForCausalLM.from_config(config).eval()
    torch.manual_seed(0)
    lm = SplitLM.from_backbone(config, 2, 40).eval()
    assert not any(isinstance(layer, DecoderLayer) for block in lm.blocks() for layer in block.layers)
    rows = torch.arange(5, 40)[None]
    backbone.load_state_dict(_as_backbone(lm, 3))
    with torch.no_grad():
        assert torch.equal(lm(rows).text_logits, backbone(rows, use_cache=False).logits)


def _as_backbone(lm, trunk):
    state = {}
    for name, value in lm.state_dict().items():
        name = name.replace("model.shared_block.layers", "model.layers").replace("text_norm", "norm")
        if name.startswith("model.text_block.layers."):
            number, rest = name.removeprefix("model.text_block.layers.").split(".", 1)
            name = f"model.layers.{int(number) + trunk}.{rest}"
        if "audio" not in name:
            state[name.replace("text_lm_head", "lm_head")] = value
    return state


@pytest.mark.parametrize("changes", [{"sliding_window": 16}, {"embedding_multiplier": 12.0}])
def test_backbones_whose_mathematics_would_be_lost_are_refused(changes):
    sizes = config_of("llama").to_dict()
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
            "num_key_value_heads")  # fmt: skip
    config = MistralConfig(**{k: sizes[k] for k in keys} | {"sliding_window": None} | changes)
    with pytest.raises(UserError, match="mistral"):
        SplitLM.from_backbone(config, 2, 40)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotations_stay_in_float32(tmp_path, dtype):
    """Cast with the weights, phases at row 14,335 were off by whole turns."""
    folder, backbone = folder_of(tmp_path / "b", "qwen3")
    wanted = backbone.model.rotary_emb.inv_freq
    lm = SplitLM.from_backbone(folder, 2, 40, dtype=dtype)
    lm.save_pretrained(tmp_path / "saved")
    again = SplitLM.from_pretrained(tmp_path / "saved")
    for model in (lm, again, again.to(torch.float32).to(dtype)):
        found = model.model.rotary_emb.inner.inv_freq
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)


def test_a_released_folder_stops_at_its_tokenizers_ids(tmp_path):
    """Its config.json names no <|im_end|>: replies went on to the limit."""
    backbone = backbone_folder(tmp_path / "backbone")
    lm = SplitLM.from_backbone(backbone, 1, 128)
    lm.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    fields = json.loads(path.read_text())
    for key in ("im_start_token_id", "im_end_token_id", "end_token_id"):
        del fields[key]
    path.write_text(json.dumps(fields))
    again = SplitLM.from_pretrained(tmp_path / "saved")
    assert again.format.im_end_id == lm.format.im_end_id is not None
    assert lm.format.im_end_id in again.stop_ids


def test_without_a_split_no_end_of_speech_before_the_asked_rows():
    lm = SplitLM.from_backbone(config_of("llama"), 0, 40, joint=True).eval()
    eosp = lm.format.eosp_row
    with torch.no_grad():
        lm.model.text_norm.weight.fill_(1.0)
        lm.text_lm_head.weight.zero_()
        lm.text_lm_head.weight[eosp] = 0.0
        lm.text_lm_head.weight[eosp + 1 :] = -1.0
    lm.stop_ids = [eosp]
    made = lm.generate([5, 6], max_new_tokens=6, min_new_tokens=4, greedy=True)
    assert eosp not in made[:4]


@pytest.mark.slow
def test_a_policy_that_trains_nothing_is_one_line(tmp_path, capsys):
    from recording import fit

    config = lm_recipe(tmp_path / "run", 3, joint=True)  # stage1 of a model without a split
    fit(tmp_path / "run", config, expected=2)
    assert "trains none of the parts" in capsys.readouterr().err


@pytest.mark.nightly
def test_predict_with_another_speech_tokenizer_is_refused(tmp_path, capsys):
    """Same count of codes, other codes: nothing complained."""
    from recording import fit

    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 5))
    other = documents_folder(tmp_path / "other", tmp_path / "backbone", "interleaved")
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"speech_tokenizer": "another one"}))
    (checkpoint,) = folder.glob("runs/tiny/*/checkpoints/*.ckpt")
    before = Path.cwd()
    os.chdir(folder)
    from lit_moss.cli.main import main

    try:
        sources = ["--data.init_args.validation", f"[{other}]", "--data.init_args.train", "[]"]
        code = main(["validate", "-c", "conf.yaml", "--ckpt_path", str(checkpoint), *sources])
    finally:
        os.chdir(before)
    assert code == 2
    assert "was trained on rows of the speech tokenizer made up" in capsys.readouterr().err


@pytest.mark.nightly
def test_predict_of_a_run_without_a_checkpoint_is_one_line(tmp_path, capsys):
    """It was an AssertionError."""
    from recording import fit

    from lit_moss.cli.main import main

    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 2))
    for path in folder.glob("runs/tiny/*/checkpoints/*"):
        path.unlink()  # as if it had been killed before its first
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["validate", "-c", "conf.yaml", "--ckpt_path", "last"]) == 2
    finally:
        os.chdir(before)
    assert "has no checkpoint yet: validate needs one" in capsys.readouterr().err


TWO_RANKS = """
import os, sys, torch, torch.distributed as dist
from backbones import config_of
from lit_moss.llm import SplitLM
dist.init_process_group("gloo")
lm = SplitLM.from_backbone(config_of("llama"), 2, 40).eval()
called = []
for name in ("text_block", "audio_block", "text_norm", "audio_norm"):
    getattr(lm.model, name).register_forward_hook(lambda *_, name=name: called.append(name))
with torch.no_grad():
    lm.loss(torch.zeros(1, 8, dtype=torch.long), torch.full((1, 8), -1))
assert called == ["text_block", "text_norm", "audio_block", "audio_norm"], called

# Targets of a rank with few of them weighed more.
from lit_moss.modules.accumulation import every_target_once
sums, counts = [6.0, 2.0], [3, 9]
rank = dist.get_rank()
found = every_target_once(torch.tensor(sums[rank] / counts[rank]), torch.tensor(counts[rank]))
dist.all_reduce(found)
assert abs(float(found) / 2 - 8.0 / 12) < 1e-6, found
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.nightly
def test_two_ranks_call_the_same_and_weigh_targets_alike(tmp_path):
    """A rank without speech left the others alone in FSDP's gathering."""
    script = tmp_path / "ranks.py"
    script.write_text(TWO_RANKS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(script)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_backbone_of_float64_decodes():
    lm = SplitLM.from_backbone(config_of("qwen3"), 1, 40, dtype=torch.float64).eval()
    assert len(lm.generate([5, 6, 7], max_new_tokens=4, greedy=True)) >= 1
    assert backbone_of("qwen3") is not None
