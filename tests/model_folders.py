"""Small models, runs and codecs in folders."""

import json
from pathlib import Path

import torch
import yaml
from decoders import made_up_codec, small_flow, small_hift
from lm_recipe import CODES as RUN_CODES
from lm_recipe import backbone_folder

from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.vocoder import HiFTVocoder
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer, row_format, text_tokenizer_fingerprint
from lit_moss.runs.checkpoint_io import AtomicCheckpointIO

CODES = 64


def model_folder(folder: Path, codes: int = CODES, max_shard_size: str = "20KB", dtype=None) -> Path:
    """A random model of a few shards; backbone beside it."""
    backbone = backbone_folder(folder.parent / "backbone")
    form = row_format(load_text_tokenizer(backbone), 128, eosp=codes)
    torch.manual_seed(5)
    lm = SplitLM.from_backbone(backbone, 1, 128, row_format=form, dtype=dtype)
    lm.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def as_released(folder: Path) -> Path:
    """Removes from a model's `config.json` what released ones do not have; adds what they have."""
    fields = json.loads((folder / "config.json").read_text())
    for name in ("im_start_token_id", "im_end_token_id", "end_token_id"):
        del fields[name]
    fields |= {"backbone_model_type": fields["backbone_model_type"], "eos_token_id": 2,
               "auto_map": {"AutoModelForCausalLM": "modeling_moss.Moss"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def codec_folder(folder: Path, codes: int = CODES, seed: int = 0) -> Path:
    """A whole codec."""
    made_up_codec(folder, codes, seed)
    tokenizer = SpeechTokenizer.from_pretrained(folder)
    voice = torch.linspace(-1, 1, 8)
    Codec(tokenizer, small_flow(seed), HiFTVocoder(small_hift(seed)), voice=voice).save_pretrained(folder)
    return folder


def run_folder(root, steps=(5,), name="tiny", lm=None, **more):
    """A run with checkpoints of a small model, without training; weights of each step differ."""
    backbone = backbone_folder(root / "backbone")
    tokenizer = load_text_tokenizer(backbone)
    if lm is None:
        form = row_format(tokenizer, 128, eosp=RUN_CODES)
        lm = SplitLM.from_backbone(backbone, 1, 128, row_format=form)
    run = root / "runs" / name / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"mlflow_run_id": None}))
    config = {"name": name, "model": {"init_args": {"backbone": str(backbone), **more.pop("model", {})}},
              "data": {"init_args": {"backbone": str(backbone), **more.pop("data", {})}}}  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for step in steps:
        state = {f"lm.{k}": v + 0.01 * step for k, v in lm.state_dict().items()}
        content = {"global_step": step, "pytorch-lightning_version": "2.6", "state_dict": state,
                   "split_config": lm.config.to_dict(),
                   "made_by": {"text_tokenizer": text_tokenizer_fingerprint(tokenizer),
                               "speech_tokenizer": "made up"}} | more  # fmt: skip
        AtomicCheckpointIO().save_checkpoint(content, run / "checkpoints" / f"step-{step:07d}.ckpt")
    return run
