"""The decoder on a CUDA device: the CPU's numbers, streams, a training step in bfloat16."""

import pytest
import torch
from decoders import small_flow, small_hift, small_prompt

from lit_moss.codec import Codec
from lit_moss.codec.flow_training import FlowBatch, draw, velocities
from lit_moss.codec.hift import HiFT
from lit_moss.codec.vocoder import GriffinLim, HiFTVocoder


def codes(n):
    return torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(0))


def test_mel_is_the_cpus():
    row = codes(30)[None]
    on_cpu = small_flow().sample(row, prompt=small_prompt())
    on_gpu = small_flow().cuda().sample(row, prompt=small_prompt()).cpu()
    assert torch.allclose(on_gpu, on_cpu, atol=2e-2)  # TF32 in convolutions


@pytest.mark.parametrize("kind", ["hift", "griffin-lim"])
def test_a_stream_is_as_long_as_the_whole_and_with_hift_the_same(kind):
    vocoder = (
        HiFTVocoder(small_hift(), lookahead_frames=HiFT.REACH_FRAMES) if kind == "hift" else GriffinLim(5)
    )
    codec = Codec(None, small_flow(), vocoder).to("cuda")
    player = codec.stream(small_prompt())
    found = torch.cat([*(player.push([c]) for c in codes(40).tolist()), player.flush()])
    whole = codec.decode(codes(40), small_prompt(), streaming=True)
    assert found.shape == whole.shape
    if kind == "hift":
        assert (found - whole).abs().mean() < 1e-2


def test_a_training_step_in_bfloat16():
    flow = small_flow().cuda().train()
    target, lengths = torch.randn(4, 80, 40, device="cuda"), torch.full((4,), 10, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        drawn = draw(flow.config, target, 4 * lengths)
        row = codes(40).view(4, 10).cuda()
        batch = FlowBatch(row, lengths, target, torch.randn(4, 8, device="cuda"))
        loss = velocities(flow, batch, drawn, streaming=True).loss()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())
