"""A small random decoder for tests."""

import torch

from lit_moss.codec.flow import Flow, FlowConfig, Prompt
from lit_moss.codec.hift import HiFT, HiFTConfig

SMALL = FlowConfig(
    vocab_size=256, hidden=32, speaker_dim=8, encoder_heads=2, encoder_inner=64, encoder_layers=2,
    channels=16, heads=2, head_width=16, blocks=1, mid_stages=2, dropout=0.1,
)  # fmt: skip


def small_flow(seed=0, **changes) -> Flow:
    from dataclasses import replace

    torch.manual_seed(seed)
    flow = Flow(replace(SMALL, **changes)).eval()
    with torch.no_grad():  # as initialised, its output hardly depends on anything
        for parameter in flow.parameters():
            parameter.mul_(1.5)
    return flow


def small_hift(seed=0) -> HiFT:
    torch.manual_seed(seed)
    hift = HiFT(HiFTConfig(32, 24)).eval()
    with torch.no_grad():
        hift.f0_predictor.classifier.bias.fill_(150.0)
        hift.m_source.l_linear.weight.fill_(1.0)
    return hift


def small_prompt(codes=7, seed=0) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    return Prompt(
        torch.randint(0, 256, (codes,), generator=generator),
        torch.randn(80, 4 * codes, generator=generator),
        torch.randn(8, generator=generator),
    )
