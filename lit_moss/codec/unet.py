"""Velocity network of the flow: a causal U-Net at one resolution, with transformers between its convolutions.

    concat(x, mu, speaker, prompt) -> down (resnet, transformers) -> mid stages -> up -> velocity
                                         '------------- skip -------------------'

The estimator of CosyVoice 2 (arXiv:2412.10117), derived from Matcha-TTS (arXiv:2309.03199); parameter names
are those of the released `flow.pt` below `decoder.estimator.`.

Shapes: B batch, M mel bands, T frames, C channels, E width of the time embedding.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_moss.audio import rates
from lit_moss.codec.stream_cache import StreamCache


@dataclass(frozen=True)
class Conditions:
    """Conditions of the velocity, besides the point on the path and its time.

    Args:
        mask_B1T: 1 at real frames, 0 at padding, (B, 1, T).
        mu_BMT: Output of the encoder (B, M, T).
        speaker_BM: Projected speaker vectors (B, M).
        prompt_BMT: Mel of the prompt, zero in frames to be generated, (B, M, T).
        seen: Keys that each query attends to, bool (B, 1, T or 1, T); None: all. Ignored in a stream, whose
            cache provides them.
    """

    mask_B1T: Tensor
    mu_BMT: Tensor
    speaker_BM: Tensor
    prompt_BMT: Tensor
    seen: Tensor | None = None

    def where(self, keep_B: Tensor) -> "Conditions":
        """Removes encoder output, speaker and prompt from the items where `keep_B` is 0."""
        return replace(
            self,
            mu_BMT=self.mu_BMT * keep_B[:, None, None],
            speaker_BM=self.speaker_BM * keep_B[:, None],
            prompt_BMT=self.prompt_BMT * keep_B[:, None, None],
        )

    def with_unconditioned(self) -> "Conditions":
        """All items, followed by all items without conditions: a batch of 2 B."""
        seen = self.seen
        if seen is not None and len(seen) > 1:
            seen = torch.cat([seen, seen])
        mask_B1T = torch.cat([self.mask_B1T, self.mask_B1T])
        mu_BMT, speaker_BM, prompt_BMT = (
            torch.cat([x, torch.zeros_like(x)]) for x in (self.mu_BMT, self.speaker_BM, self.prompt_BMT)
        )
        return Conditions(mask_B1T, mu_BMT, speaker_BM, prompt_BMT, seen)


def time_embedding(t_B: Tensor, width: int) -> Tensor:
    """e = [sin(1000 t f), cos(1000 t f)], f_m = exp(-m ln(10000) / (width/2 - 1)): (B, width)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=t_B.device).float() * -(math.log(10_000) / (half - 1)))
    angles = 1000.0 * t_B.float()[:, None] * frequency[None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class CausalConv(nn.Conv1d):
    """Causal convolution with kernel 3: two zeros (in a stream, the last two frames) are prepended."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3)

    def forward(self, input: Tensor, cache: StreamCache | None = None) -> Tensor:
        """(B, C, T) -> (B, C', T)."""
        return super().forward(F.pad(input, (2, 0)) if cache is None else cache.prepend(self, input, 2))


class Block(nn.Module):
    """Mish(LN(conv(z mask))) mask, with LayerNorm over channels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.block = nn.ModuleDict(
            {"0": CausalConv(channels_in, channels_out), "2": nn.LayerNorm(channels_out)}
        )

    def forward(self, z_BCT: Tensor, mask_B1T: Tensor, cache: StreamCache | None) -> Tensor:
        """(B, C, T) -> (B, C', T)."""
        y_BCT = self.block["0"](z_BCT * mask_B1T, cache)
        return F.mish(self.block["2"](y_BCT.transpose(1, 2)).transpose(1, 2)) * mask_B1T


class Resnet(nn.Module):
    """block2(block1(z) + time) + conv1x1(z mask)."""

    def __init__(self, channels_in: int, channels_out: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"1": nn.Linear(time_width, channels_out)})
        self.block1 = Block(channels_in, channels_out)
        self.block2 = Block(channels_out, channels_out)
        self.res_conv = nn.Conv1d(channels_in, channels_out, 1)

    def forward(self, z_BCT: Tensor, mask_B1T: Tensor, time_BE: Tensor, cache: StreamCache | None) -> Tensor:
        """(B, C, T), time embedding (B, E) -> (B, C', T)."""
        y_BCT = self.block1(z_BCT, mask_B1T, cache) + self.mlp["1"](F.mish(time_BE))[:, :, None]
        return self.block2(y_BCT, mask_B1T, cache) + self.res_conv(z_BCT * mask_B1T)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_k = nn.Linear(width, heads * head_width, bias=False)
        self.to_v = nn.Linear(width, heads * head_width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(heads * head_width, width)])

    def forward(self, x_BTC: Tensor, seen: Tensor | None, cache: StreamCache | None) -> Tensor:
        q, k, v = (
            proj(x_BTC).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.to_q, self.to_k, self.to_v)
        )
        if cache is not None:
            k, v = cache.keys_values(self, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class _Projected(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return F.gelu(self.proj(x_BTC))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"0": _Projected(width, 4 * width), "2": nn.Linear(4 * width, width)})

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.net["2"](self.net["0"](x_BTC))


class TransformerBlock(nn.Module):
    """Pre-norm attention without positions, and a feed-forward layer of four times the width."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = _Attention(width, heads, head_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def forward(self, z_BTC: Tensor, seen: Tensor | None, cache: StreamCache | None) -> Tensor:
        """(B, T, C) -> (B, T, C); `seen` is bool (B, 1, T or 1, keys), True where a query attends."""
        z_BTC = z_BTC + self.attn1(self.norm1(z_BTC), seen, cache)
        return z_BTC + self.ff(self.norm3(z_BTC))


class _TimeMLP(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, e_BE: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(e_BE)))


class CausalUNet(nn.Module):
    """Velocity of the flow at (x, t) under its conditions.

    Args:
        channels: Number of channels C.
        heads: Number of attention heads.
        head_width: Width of an attention head; heads * head_width may differ from C (officially 512 and 256).
        blocks: Number of transformer blocks per stage.
        mid_stages: Number of stages between down and up.
    """

    def __init__(self, channels: int, heads: int, head_width: int, blocks: int, mid_stages: int) -> None:
        super().__init__()
        bands = rates.DECODER_MEL_BINS
        self.width_in = 4 * bands  # x, mu, speaker, prompt
        time = 4 * channels

        def stage(channels_in: int) -> list[nn.Module]:
            return [
                Resnet(channels_in, channels, time),
                nn.ModuleList(TransformerBlock(channels, heads, head_width) for _ in range(blocks)),
            ]

        self.time_mlp = _TimeMLP(self.width_in, time)
        self.down_blocks = nn.ModuleList(
            [nn.ModuleList([*stage(self.width_in), CausalConv(channels, channels)])]
        )
        self.mid_blocks = nn.ModuleList(nn.ModuleList(stage(channels)) for _ in range(mid_stages))
        self.up_blocks = nn.ModuleList(
            [nn.ModuleList([*stage(2 * channels), CausalConv(channels, channels)])]
        )
        self.final_block = Block(channels, channels)
        self.final_proj = nn.Conv1d(channels, bands, 1)

    def forward(
        self, x_BMT: Tensor, t_B: Tensor, conditions: Conditions, cache: StreamCache | None = None
    ) -> Tensor:
        """Velocity or mel, (B, M, T).

        Args:
            x_BMT: Point on the path (B, M, T).
            t_B: Times (B,), 0 to 1.
            conditions: Conditions of the B items.
            cache: State of a stream whose next chunk these frames are; None: whole utterances.
        """
        mask_B1T = conditions.mask_B1T
        seen = conditions.seen if cache is None else cache.seen
        time_BE = self.time_mlp(time_embedding(t_B, self.width_in).to(x_BMT.dtype))
        speaker_BMT = conditions.speaker_BM[:, :, None].expand(-1, -1, x_BMT.shape[-1])
        h = torch.cat([x_BMT, conditions.mu_BMT, speaker_BMT, conditions.prompt_BMT], dim=1)

        def run(stage: nn.ModuleList, h_BCT: Tensor) -> Tensor:
            h_BTC = stage[0](h_BCT, mask_B1T, time_BE, cache).transpose(1, 2)
            for block in cast(Iterable[TransformerBlock], stage[1]):
                h_BTC = block(h_BTC, seen, cache)
            return h_BTC.transpose(1, 2)

        down, up = cast(nn.ModuleList, self.down_blocks[0]), cast(nn.ModuleList, self.up_blocks[0])
        skip = run(down, h)
        h = down[2](skip * mask_B1T, cache)
        for stage in self.mid_blocks:
            h = run(cast(nn.ModuleList, stage), h)
        h = run(up, torch.cat([h, skip], dim=1))
        h = up[2](h * mask_B1T, cache)
        h = self.final_block(h, mask_B1T, cache)
        return self.final_proj(h * mask_B1T) * mask_B1T
