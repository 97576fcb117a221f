"""The speech tokenizer's network.

    log-mel -> causal convolutions and attention -> average pool x4 -> nearest code

A Whisper encoder made strictly causal and cut after `quantize_position` layers, as in GLM-4-Voice and
MOSS-Speech (arXiv:2510.00499, section 2.2). Parameter names are those of the released `model.safetensors`
without its `encoder.` prefix, so released tokenizers and Whisper encoders load by name.

Shapes: B batch, M mel bins, F mel frames (100 Hz), L hidden frames (50 Hz), N codes (12.5 Hz), D model width,
H heads, K codebook entries.
"""

import hashlib
import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_moss.audio import rates
from lit_moss.codec import quantizer
from lit_moss.errors import UserError


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the tokenizer, under the names of the released `config.json`. Defaults are the official size.

    Args:
        num_mel_bins: Mel bands; 128 in Whisper-large-v3, 80 in the smaller Whispers.
        d_model: Width.
        encoder_attention_heads: Heads; divides d_model.
        encoder_ffn_dim: Width of the feed-forward layers.
        quantize_position: Layers before pooling and quantizing.
        max_source_positions: Rows of the position table (50 Hz); 1500 is 30 s.
        quantize_vocab_size: Codebook entries.
        quantize_ema_decay: Decay of the codebook's moving averages, per update.
        quantize_commit_coefficient: Weight of the commitment loss, times quantize_loss_scale.
        quantize_loss_scale: See above; officially 10, so that the weight in all is 2.5.
        quantize_restart_interval: Updates between two looks for dead codes.
        log_mel: `causal` (streaming-safe, see `CausalLogMel`) or `whisper` (the released extractor, offline
            only).
    """

    num_mel_bins: int = 128
    d_model: int = 1280
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    quantize_position: int = 16
    max_source_positions: int = 1500
    quantize_vocab_size: int = 16384
    quantize_ema_decay: float = 0.99
    quantize_commit_coefficient: float = 0.25
    quantize_loss_scale: float = 10.0
    quantize_restart_interval: int = 100
    log_mel: str = "causal"

    def __post_init__(self) -> None:
        if self.d_model % self.encoder_attention_heads:
            raise UserError(f"d_model {self.d_model} is no multiple of {self.encoder_attention_heads} heads")
        if self.quantize_vocab_size < 2:
            raise UserError(f"quantize_vocab_size is {self.quantize_vocab_size}, expected 2 or more")
        if self.log_mel not in ("causal", "whisper"):
            raise UserError(f"log_mel is {self.log_mel!r}, expected 'causal' or 'whisper'")

    @classmethod
    def from_official(cls, config: dict[str, Any]) -> "EncoderConfig":
        """From a released `config.json`.

        Keys we have no use for are ignored, departures we cannot run are errors.
        """
        for key, ours in (("pooling_kernel_size", rates.HIDDEN_PER_CODE), ("pooling_type", "avg")):
            if config.get(key, ours) != ours:
                raise ValueError(f"config.json has {key}={config[key]!r}, only {ours!r} is supported")
        if config.get("pooling_position", config["quantize_position"]) != config["quantize_position"]:
            raise ValueError(
                "config.json has pooling_position and quantize_position apart, expected them equal"
            )
        return cls(**{f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None})

    def to_official(self) -> dict[str, Any]:
        """The released `config.json` layout."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "architectures": ["WhisperVQEncoder"],
            "model_type": "whisper",
            "activation_function": "gelu",
            "encoder_layers": self.quantize_position,
            "pooling_position": self.quantize_position,
            "pooling_kernel_size": rates.HIDDEN_PER_CODE,
            "pooling_type": "avg",
            "encoder_causal_attention": True,
            "encoder_causal_convolution": True,
            "quantize_causal_encoder": True,
            "quantize_encoder_only": True,
        }


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's position table: (length, width), sines in the first half of a row, cosines in the second."""
    inverse = torch.exp(-torch.arange(width // 2) * (math.log(10_000.0) / (width // 2 - 1)))
    angles = torch.arange(length)[:, None] * inverse
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SelfAttention(nn.Module):
    """Causal multi-head self-attention with Whisper's biases (none on keys)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, x_BLD: Tensor, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The output and the longer `past`: keys and values (B, H, P, D/H) of the P frames before."""
        q, k, v = (
            proj(x_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = None
        if past is not None and past[0].shape[2]:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            new, every = q.shape[2], k.shape[2]
            mask = torch.ones(new, every, dtype=torch.bool, device=q.device).tril(every - new)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out_proj(out.transpose(1, 2).flatten(2)), (k, v)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer with Whisper's names."""

    def __init__(self, width: int, heads: int, ffn_width: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self, x_BLD: Tensor, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, present = self.self_attn(self.self_attn_layer_norm(x_BLD), past)
        x_BLD = x_BLD + attended
        return x_BLD + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x_BLD)))), present


@dataclass
class EncoderState:
    """What a stream carries from one chunk to the next. Empty at the start of a segment."""

    conv1_tail: Tensor | None = None  # (B, M, 2) last mel frames
    conv2_tail: Tensor | None = None  # (B, D, 2) last outputs of conv1, after GELU
    past: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # per layer: keys, values (B, H, P, D/H)
    frames: int = 0  # hidden frames so far = the next position


class CausalEncoder(nn.Module):
    """Log-mel (B, M, F) -> hidden frames (B, F/2, D) -> pooled frames (B, F/8, D) -> codes (B, F/8)."""

    ema_count: Tensor
    ema_weight: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(
            EncoderLayer(width, config.encoder_attention_heads, config.encoder_ffn_dim)
            for _ in range(config.quantize_position)
        )
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self.embed_positions2 = nn.Embedding(config.max_source_positions // rates.HIDDEN_PER_CODE, width)
        self.register_buffer("ema_count", torch.ones(config.quantize_vocab_size))
        self.register_buffer("ema_weight", self.codebook.weight.detach().clone())
        # Tables and codebook learn by other means than gradients: sinusoids never, the codebook by moving
        # averages.
        for table in (self.embed_positions, self.embed_positions2, self.codebook):
            table.weight.requires_grad_(False)
        for table in (self.embed_positions, self.embed_positions2):
            table.weight.copy_(sinusoids(*table.weight.shape))

    def forward(self, mel_BMF: Tensor, state: EncoderState | None = None) -> Tensor:
        """(B, M, F) -> (B, ceil(F/2), D).

        With `state`, F is even, the chunk continues the stream and updates it.
        """
        state = EncoderState() if state is None else state
        if mel_BMF.shape[-1] % 2:
            mel_BMF = F.pad(mel_BMF, (0, 1))
        x_BDF, state.conv1_tail = _causal_conv(self.conv1, mel_BMF, state.conv1_tail)
        x_BDL, state.conv2_tail = _causal_conv(self.conv2, F.gelu(x_BDF), state.conv2_tail)
        x_BLD = F.gelu(x_BDL).transpose(1, 2)
        until = state.frames + x_BLD.shape[1]
        if until > self.config.max_source_positions:
            raise ValueError(
                f"{until} hidden frames, at most {self.config.max_source_positions}: cut into segments"
            )
        x_BLD = x_BLD + self.embed_positions.weight[state.frames : until]
        past: list[tuple[Tensor, Tensor] | None] = list(state.past) or [None] * len(self.layers)
        state.past = []
        for layer, before in zip(self.layers, past, strict=True):
            x_BLD, present = layer(x_BLD, before)
            state.past.append(present)
        state.frames = until
        return x_BLD

    def pool(self, hidden_BLD: Tensor) -> Tensor:
        """Mean of four hidden frames each, zeros filling the last group: (B, L, D) -> (B, ceil(L/4), D)."""
        short = -hidden_BLD.shape[1] % rates.HIDDEN_PER_CODE
        return F.pad(hidden_BLD, (0, 0, 0, short)).unflatten(1, (-1, rates.HIDDEN_PER_CODE)).mean(dim=2)

    def quantize(self, pooled_BND: Tensor) -> Tensor:
        """Nearest codebook row, lowest index on ties: (B, N, D) -> int64 (B, N)."""
        return quantizer.nearest(pooled_BND.flatten(0, -2), self.codebook.weight).view(pooled_BND.shape[:-1])

    def dequantize(self, codes_BN: Tensor) -> Tensor:
        """Codebook rows plus positions, the released model's hidden output: int64 (B, N) -> (B, N, D)."""
        return self.codebook(codes_BN) + self.embed_positions2.weight[: codes_BN.shape[1]]


def fingerprint(encoder: CausalEncoder) -> str:
    """16 hex digits of what decides the codes: sizes, network and codebook."""
    digest = hashlib.sha256(repr(encoder.config).encode())
    for name, value in sorted(encoder.state_dict().items()):
        if not name.startswith("ema_"):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _causal_conv(conv: nn.Conv1d, x_BCF: Tensor, tail_BC2: Tensor | None) -> tuple[Tensor, Tensor]:
    """Convolution that sees two frames of the past (zeros at the start) and none of the future.

    Returns the output and the new tail.
    """
    x_BCF = torch.cat([x_BCF.new_zeros(*x_BCF.shape[:2], 2) if tail_BC2 is None else tail_BC2, x_BCF], dim=-1)
    return conv(x_BCF), x_BCF[..., -2:]
