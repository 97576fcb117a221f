"""Small models and codecs in folders of the released layout."""

import json
from pathlib import Path

import torch
from decoders import made_up_codec, small_flow, small_hift
from lm_recipe import backbone_folder

from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.vocoder import HiFTVocoder
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer, row_format

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
