"""A factor of `LearningRateSchedule.groups` left out biases and norms of tokenizer, decoder and vocoder."""

import pytest
import torch
from decoders import SMALL
from torch import nn
from vocoders import DISCRIMINATORS
from vocoders import SMALL as NET

from callbacks import LearningRateSchedule
from lit_moss.codec.ctc import CharVocabulary
from lit_moss.codec.discriminators import DiscriminatorConfig
from lit_moss.codec.encoder import EncoderConfig
from lit_moss.codec.vocoder_net import VocoderConfig
from lit_moss.modules import CodecEncoder, FlowDecoder, Vocoder
from lit_moss.optimizer_groups import decay_groups


def tokenizer():
    sizes = {"d_model": 64, "encoder_attention_heads": 2, "encoder_ffn_dim": 128, "quantize_position": 2}
    encoder = EncoderConfig(num_mel_bins=80, quantize_vocab_size=16, **sizes)
    module = CodecEncoder(init_from=None, encoder=encoder, head_layers=1, head_width=64)
    module._build_head(CharVocabulary("abc"))
    return module


def vocoder():
    judges = DiscriminatorConfig(**DISCRIMINATORS)
    return Vocoder(VocoderConfig(**NET), adversarial_from_step=0, discriminators=judges)


@pytest.mark.parametrize(
    ("make", "part", "others"),
    [
        (tokenizer, "encoder", {"head"}),
        (lambda: FlowDecoder(SMALL), "flow", set()),
        (vocoder, "vocoder", {"discriminator"}),
    ],
)
def test_a_factor_acts_on_all_of_a_part(make, part, others):
    optimizer = make().configure_optimizers()
    schedule = LearningRateSchedule(0, total_steps=10, kind="constant", groups={part: 0.5})
    schedule._total = 10
    factors = {g["name"]: schedule.rate(0, g) / g["base_lr"] for g in optimizer.param_groups}
    assert {name for name, factor in factors.items() if factor == 0.5} == {part, f"{part}.no_decay"}
    assert {name.partition(".")[0] for name, factor in factors.items() if factor == 1.0} == others


def test_matrices_decay_and_the_rest_does_not():
    block = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Conv1d(2, 2, 3, bias=False))
    groups = decay_groups("part", block.parameters(), 0.1, 0.01)
    held = [(g["name"], g["lr"], g["base_lr"], g["weight_decay"], len(g["params"])) for g in groups]
    assert held == [("part", 0.1, 0.1, 0.01, 2), ("part.no_decay", 0.1, 0.1, 0.0, 3)]
    assert [g["name"] for g in decay_groups("part", [torch.zeros(2, 2)], 0.1, 0.01)] == ["part"]
