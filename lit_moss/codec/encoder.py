"""Network of the speech tokenizer.

    log-mel -> causal convolutions and attention -> average pool x4 -> nearest code

A Whisper encoder made strictly causal and cut after `quantize_position` layers, as in GLM-4-Voice and
MOSS-Speech (arXiv:2510.00499, section 2.2). Parameter names are those of the released `model.safetensors`
without the prefix `encoder.`, so weights of released tokenizers and of Whisper encoders load by name.

Shapes: B batch, M mel bins, F mel frames (100 Hz), L hidden frames (50 Hz), N codes (12.5 Hz), D model width,
H heads, K codebook entries.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_moss.audio import rates
from lit_moss.codec import quantizer
from lit_moss.codec.settings import check_settings
from lit_moss.cpu_attention import causal_attention
from lit_moss.errors import UserError

# Keys of a released `config.json` that affect the results -> the value that this network implements. The
# GLM-4-Voice tokenizer uses non-causal attention, whose frames attend to whole blocks.
_OURS: dict[str, Any] = {
    "pooling_kernel_size": rates.HIDDEN_PER_CODE,
    "pooling_type": "avg",
    "activation_function": "gelu",
    "encoder_causal_attention": True,
    "encoder_causal_convolution": True,
    "scale_embedding": False,
    "layer_norm_eps": 1e-5,
}
# As above, for `preprocessor_config.json`.
_OUR_FEATURES: dict[str, Any] = {
    "sampling_rate": rates.TOKENIZER_RATE_HZ,
    "n_fft": rates.WHISPER_FFT_SAMPLES,
    "hop_length": rates.WHISPER_HOP_SAMPLES,
    "do_normalize": False,
    "dither": 0.0,
}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the tokenizer, named as in the released `config.json`. Defaults: the official sizes.

    Args:
        num_mel_bins: Number of mel bands: 128 for Whisper-large-v3, 80 for the smaller Whispers.
        d_model: Width.
        encoder_attention_heads: Number of attention heads; must divide d_model.
        encoder_ffn_dim: Width of the feed-forward layers.
        quantize_position: Number of layers before pooling and quantizing.
        max_source_positions: Number of rows of the position table (50 Hz); 1500 is 30 s.
        quantize_vocab_size: Number of codebook entries.
        quantize_ema_decay: Decay of the codebook's moving averages, per update.
        quantize_commit_coefficient: Weight of the commitment loss, multiplied by quantize_loss_scale.
        quantize_loss_scale: Factor on the weight of the commitment loss; 10 officially, for a total weight of
            2.5.
        quantize_restart_interval: Number of updates between two searches for dead codes.
        log_mel: Features: `causal` (for streaming, see `CausalLogMel`) or `whisper` (those of the released
            extractor, whole recordings only).
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
        check_settings(self, at_least={"quantize_loss_scale": 0.0, "quantize_commit_coefficient": 0.0})
        if not 0.0 <= self.quantize_ema_decay < 1.0:
            raise UserError(
                f"quantize_ema_decay is {self.quantize_ema_decay}, expected 0 or more and below 1"
            )
        if self.d_model % self.encoder_attention_heads:
            raise UserError(
                f"d_model {self.d_model} is not a multiple of {self.encoder_attention_heads} heads"
            )
        if self.d_model < 4 or self.d_model % 2:
            raise UserError(
                f"d_model is {self.d_model}, expected an even number of 4 or more: sines and cosines come in "
                "pairs"
            )
        if self.max_source_positions < rates.HIDDEN_PER_CODE:
            raise UserError(
                f"max_source_positions is {self.max_source_positions}, expected {rates.HIDDEN_PER_CODE} or "
                "more: a code has as many"
            )
        if self.quantize_vocab_size < 2:
            raise UserError(f"quantize_vocab_size is {self.quantize_vocab_size}, expected 2 or more")
        if self.log_mel not in ("causal", "whisper"):
            raise UserError(f"log_mel is {self.log_mel!r}, expected 'causal' or 'whisper'")

    @classmethod
    def from_official(
        cls, config: Mapping[str, Any], unstated_log_mel: str = "causal", strict: bool = True
    ) -> "EncoderConfig":
        """Creates the configuration from a released `config.json`.

        Keys that do not affect the network are ignored.

        Args:
            config: Content of the file.
            unstated_log_mel: `log_mel` for files without that key, which is specific to lit_moss: `whisper`
                to encode as released tokenizers do, `causal` to train a tokenizer for streaming.
            strict: Reject settings for which the released network computes other results than this one.
                Weights from which a training starts may have any settings.

        Raises:
            UserError: if a setting is rejected, a size is missing, or a value has the wrong type.
        """
        if strict and (differences := departures(config)):
            raise UserError(
                f"config.json has {'; '.join(differences)}: its codes would be computed wrongly; it serves "
                "as weights to start a training from (`init_from`)"
            )
        stated: dict[str, Any] = {
            f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None
        }
        stated.setdefault("log_mel", unstated_log_mel)
        return cls(**stated)

    def to_official(self) -> dict[str, Any]:
        """The configuration in the layout of the released `config.json`."""
        return asdict(self) | {
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


def departures(config: Mapping[str, Any], features: Mapping[str, Any] | None = None) -> list[str]:
    """Settings for which a released tokenizer computes other codes than this network, as one message each.

    Args:
        config: Content of `config.json`.
        features: Content of `preprocessor_config.json`.
    """
    differences = [
        f"{key}={content[key]!r}, only {ours!r} is supported"
        for content, table in ((config, _OURS), (features or {}, _OUR_FEATURES))
        for key, ours in table.items()
        if content.get(key) is not None and content[key] != ours
    ]
    quantize_at = config.get("quantize_position")
    if config.get("pooling_position", quantize_at) != quantize_at:
        differences.append(
            f"pooling_position={config['pooling_position']!r} and quantize_position={quantize_at!r}, "
            "expected them equal"
        )
    bins, mel_bins = (features or {}).get("feature_size"), config.get("num_mel_bins")
    if bins is not None and mel_bins is not None and bins != mel_bins:
        differences.append(f"feature_size={bins!r}, expected num_mel_bins, {mel_bins!r}")
    return differences


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's position table (length, width): sines in the first half of a row, then cosines."""
    half = torch.arange(width // 2, dtype=torch.float32)
    inverse = torch.exp(-half * (math.log(10_000.0) / (width // 2 - 1)))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inverse
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

    def forward(self, x_BLD: Tensor, past: "KeysValues | None" = None) -> tuple[Tensor, "KeysValues | None"]:
        """(B, L, D) -> (B, L, D), and `past`, extended by these frames."""
        q, k, v = (
            proj(x_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = None
        if past is not None:
            k, v = past.append(k, v)
            new, every = q.shape[2], k.shape[2]
            if new < every:
                mask = torch.ones(new, every, dtype=torch.bool, device=q.device).tril(every - new)
        if mask is None:
            out = causal_attention(q, k, v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2)), past


class KeysValues:
    """Keys and values of one layer's frames so far, in preallocated buffers.

    Each step writes its frames in place: concatenation would copy the whole past.
    """

    def __init__(self, longest: int) -> None:
        self.longest, self.frames = longest, 0
        self._held: tuple[Tensor, Tensor] | None = None

    def append(self, k_BHLd: Tensor, v_BHLd: Tensor) -> tuple[Tensor, Tensor]:
        """Appends frames; returns the keys and values of all frames, (B, H, P, d) each."""
        if self._held is None:
            batch, heads, _, width = k_BHLd.shape
            shape = (batch, heads, self.longest, width)
            self._held = (k_BHLd.new_empty(shape), v_BHLd.new_empty(shape))
        first, self.frames = self.frames, self.frames + k_BHLd.shape[2]
        for held, new in zip(self._held, (k_BHLd, v_BHLd), strict=True):
            held[:, :, first : self.frames] = new
        return self._held[0][:, :, : self.frames], self._held[1][:, :, : self.frames]


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer with Whisper's names."""

    def __init__(self, width: int, heads: int, ffn_width: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x_BLD: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues | None]:
        """(B, L, D) -> (B, L, D), and `past`, extended by these frames."""
        attended, past = self.self_attn(self.self_attn_layer_norm(x_BLD), past)
        x_BLD = x_BLD + attended
        return x_BLD + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x_BLD)))), past


@dataclass
class EncoderState:
    """State of a stream between chunks; empty at the start of a segment."""

    conv1_tail: Tensor | None = None  # (B, M, 2) last mel frames
    conv2_tail: Tensor | None = None  # (B, D, 2) last outputs of conv1, after GELU
    past: list[KeysValues] = field(default_factory=list)  # per layer
    frames: int = 0  # hidden frames so far, which is the next position

    def restart(self) -> None:
        """Resets to the start of a segment; buffers are kept."""
        self.conv1_tail = self.conv2_tail = None
        self.frames = 0
        for layer in self.past:
            layer.frames = 0


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
        # No gradients: sinusoids are constant, and the codebook is updated by moving averages.
        for table in (self.embed_positions, self.embed_positions2, self.codebook):
            table.weight.requires_grad_(False)
        for table in (self.embed_positions, self.embed_positions2):
            table.weight.copy_(sinusoids(*table.weight.shape))

    def forward(self, mel_BMF: Tensor, state: EncoderState | None = None) -> Tensor:
        """(B, M, F) -> (B, ceil(F/2), D).

        With `state`, F must be even; the chunk continues the stream and updates the state.
        """
        past: list[KeysValues | None] = [None] * len(self.layers)
        if state is None:
            state = EncoderState()
        else:
            state.past = state.past or [KeysValues(self.config.max_source_positions) for _ in self.layers]
            past = list(state.past)
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
        for layer, before in zip(self.layers, past, strict=True):
            x_BLD, _ = layer(x_BLD, before)
        state.frames = until
        return x_BLD

    def pool(self, hidden_BLD: Tensor) -> Tensor:
        """Mean of every four hidden frames, the last group zero-padded: (B, L, D) -> (B, ceil(L/4), D)."""
        short = -hidden_BLD.shape[1] % rates.HIDDEN_PER_CODE
        return F.pad(hidden_BLD, (0, 0, 0, short)).unflatten(1, (-1, rates.HIDDEN_PER_CODE)).mean(dim=2)

    def quantize(self, pooled_BND: Tensor) -> Tensor:
        """Nearest codebook row, lowest index on ties: (B, N, D) -> int64 (B, N)."""
        return quantizer.nearest(pooled_BND.flatten(0, -2), self.codebook.weight).view(pooled_BND.shape[:-1])

    def dequantize(self, codes_BN: Tensor) -> Tensor:
        """Codebook rows plus positions, the released model's hidden output: int64 (B, N) -> (B, N, D)."""
        return self.codebook(codes_BN) + self.embed_positions2.weight[: codes_BN.shape[1]]


# Sizes and features that determine the codes; the other settings of `EncoderConfig` only affect training.
_DECIDING = (
    "num_mel_bins", "d_model", "encoder_attention_heads", "encoder_ffn_dim", "quantize_position",
    "max_source_positions", "quantize_vocab_size", "log_mel",
)  # fmt: skip
_NOT_DECIDING = ("ema_", "embed_positions2.")  # training averages; positions used only by `dequantize`


@torch.no_grad()
def fingerprint(encoder: CausalEncoder, log_mel: str | None = None) -> str:
    """16 hex digits of all that determines the codes: sizes, `log_mel`, network and codebook.

    Equal for a tokenizer in training, for its checkpoint, and for the folder that `save_pretrained` writes,
    on every device. Reads all weights, which takes a second per gigabyte.

    Args:
        encoder: The network.
        log_mel: Features to use instead of the encoder's own, to compare with a tokenizer that uses them.
    """
    settings = {name: value for name, value in asdict(encoder.config).items() if name in _DECIDING}
    settings["log_mel"] = log_mel or settings["log_mel"]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, value in sorted(encoder.state_dict().items()):
        if not name.startswith(_NOT_DECIDING):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def _causal_conv(conv: nn.Conv1d, x_BCF: Tensor, tail_BC2: Tensor | None) -> tuple[Tensor, Tensor]:
    """Convolution that sees two past frames (zeros at the start) and no future frame.

    Returns the output and the new tail.
    """
    x_BCF = torch.cat([x_BCF.new_zeros(*x_BCF.shape[:2], 2) if tail_BC2 is None else tail_BC2, x_BCF], dim=-1)
    return conv(x_BCF), x_BCF[..., -2:]
