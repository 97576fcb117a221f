"""A tiny model that listens and speaks, for tests of what serves it: random weights, a tokenizer of bytes."""

import torch
from decoders import made_up_codec, small_flow
from lm_recipe import backbone_folder

from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer, row_format

CODES = 64


def model_folder(path, codes=CODES, kind="llama", seed=5):
    """A folder as `export` writes it, with a codec inside."""
    backbone = backbone_folder(path.parent / f"{path.name}-backbone", kind)
    form = row_format(load_text_tokenizer(backbone), 128, eosp=codes)
    torch.manual_seed(seed)
    lm = SplitLM.from_backbone(backbone, 1, 128, row_format=form)
    with torch.no_grad():  # heads that prefer some ids, so that greedy replies are not one id
        for branch in lm.branches:
            branch.head.weight.normal_(0.0, 0.5)
    lm.save_pretrained(path, load_text_tokenizer(backbone))
    tokenizer = SpeechTokenizer.from_pretrained(made_up_codec(path / "codec", codes))
    Codec(tokenizer, small_flow(vocab_size=256, steps=2), None).save_pretrained(path / "codec")
    return path


def wave(seconds=1.0, pitch_hz=150.0, rate_hz=24_000):
    """A voice-like tone (n,)."""
    t = torch.arange(int(seconds * rate_hz)) / rate_hz
    return sum(0.2 / k * torch.sin(2 * torch.pi * k * pitch_hz * t) for k in range(1, 6))
