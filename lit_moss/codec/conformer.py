"""Encoder of the flow decoder: a chunk-causal transformer that upsamples codes by four to the mel rate.

    code embeddings, 12.5 Hz -> look-ahead of 3 -> 6 layers -> x4 -> 4 layers, 50 Hz

The encoder of CosyVoice 2's flow (arXiv:2412.10117) with the sizes of MOSS-Speech; parameter names are those
of the released `flow.pt`. Attention is relative-positional (Transformer-XL, arXiv:1901.02860).

Shapes: B batch, N codes, T frames (= 4 N), D width, H heads, U distinct offsets.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_moss.audio import rates
from lit_moss.codec.stream_cache import Chunks, StreamCache, length_mask, seen_keys

UP_LAYERS = 4
LOOKAHEAD_CODES = 3


@dataclass
class Offsets:
    """Distances i - j between queries i and keys j.

    Args:
        table_UD: Sinusoids of each distinct distance (U, D).
        index_QK: Row of the table for each pair of query and key, (Q, K).
    """

    table_UD: Tensor
    index_QK: Tensor

    @classmethod
    def between(cls, queries: Tensor, keys: Tensor, like: Tensor) -> "Offsets":
        """Offsets for arbitrary positions, with the device, dtype and width of `like` (…, D)."""
        distinct, index = torch.unique(queries[:, None] - keys[None], return_inverse=True)
        return cls(_sinusoids(distinct, like), index.to(like.device, non_blocking=True))

    @classmethod
    def within(cls, frames: int, like: Tensor) -> "Offsets":
        """Offsets within `frames` consecutive frames: distances T-1 down to -(T-1)."""
        i = torch.arange(frames, device=like.device)
        distances = torch.arange(frames - 1, -frames, -1, device="cpu")
        return cls(_sinusoids(distances, like), frames - 1 - (i[:, None] - i[None]))


def _sinusoids(offsets_U: Tensor, like: Tensor) -> Tensor:
    """pe(r)[2m] = sin(r w_m), pe(r)[2m+1] = cos(r w_m), w_m = exp(-2m ln(10000) / D): (U, D)."""
    width = like.shape[-1]
    even = torch.arange(0, width, 2, dtype=torch.float32, device=offsets_U.device)
    frequency = torch.exp(even * -(math.log(10_000.0) / width))
    angles = offsets_U.float()[:, None] * frequency
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like, non_blocking=True)


class RelativeAttention(nn.Module):
    """score(i, j) = ((q_i + u) k_j + (q_i + v) P(i - j)) / sqrt(d)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.pos_bias_u = nn.Parameter(torch.empty(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, width // heads))
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def forward(
        self, x_BTD: Tensor, offsets: Offsets, seen: Tensor | None, cache: StreamCache | None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); `seen` is bool (…, T, keys), True where a query attends."""
        q, k, v = (
            proj(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.linear_q, self.linear_k, self.linear_v)
        )
        if cache is not None:
            k, v = cache.keys_values(self, k, v)
        place_HUd = self.linear_pos(offsets.table_UD).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        by_offset_BHQU = (q + self.pos_bias_v[:, None]) @ place_HUd.transpose(-1, -2)
        index = offsets.index_QK.expand(*by_offset_BHQU.shape[:2], -1, -1)
        bias_BHQK = by_offset_BHQU.gather(-1, index) / math.sqrt(q.shape[-1])
        if seen is not None:
            bias_BHQK = bias_BHQK.masked_fill(~seen, float("-inf"))
        out = F.scaled_dot_product_attention(
            q + self.pos_bias_u[:, None],
            k,
            v,
            attn_mask=bias_BHQK.to(q.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.linear_out(out.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)


class ConformerLayer(nn.Module):
    """Pre-norm attention and feed-forward. Named as in the released code; it contains no convolution."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(width, heads, dropout)
        self.feed_forward = _FeedForward(width, inner)
        self.norm_ff = nn.LayerNorm(width, eps=1e-12)
        self.norm_mha = nn.LayerNorm(width, eps=1e-12)
        self.dropout = dropout

    def forward(
        self, x_BTD: Tensor, offsets: Offsets, seen: Tensor | None, cache: StreamCache | None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); arguments as in `RelativeAttention`."""
        attended = self.self_attn(self.norm_mha(x_BTD), offsets, seen, cache)
        x_BTD = x_BTD + F.dropout(attended, self.dropout, self.training)
        inner = F.dropout(F.silu(self.feed_forward.w_1(self.norm_ff(x_BTD))), self.dropout, self.training)
        return x_BTD + F.dropout(self.feed_forward.w_2(inner), self.dropout, self.training)


class Embed(nn.Module):
    """Linear layer, LayerNorm, multiplication by sqrt(D)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.dropout = dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return F.dropout(self.out(x_BTD) * math.sqrt(x_BTD.shape[-1]), self.dropout, self.training)


class PreLookahead(nn.Module):
    """Two convolutions with a residual: the first sees three codes ahead, the second two codes back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, LOOKAHEAD_CODES + 1)
        self.conv2 = nn.Conv1d(width, width, 3)

    def forward(self, x_BND: Tensor, ahead_BAD: Tensor | None, cache: StreamCache | None) -> Tensor:
        """(B, N, D) -> (B, N, D). `ahead_BAD` holds the embeddings of the next three codes; missing ones at
        the end of the utterance are replaced by zeros."""
        y_BDN = x_BND.transpose(1, 2)
        if ahead_BAD is not None:
            y_BDN = torch.cat([y_BDN, ahead_BAD.transpose(1, 2)], dim=-1)
        y_BDN = F.pad(y_BDN, (0, x_BND.shape[1] + LOOKAHEAD_CODES - y_BDN.shape[-1]))
        y_BDN = F.leaky_relu(self.conv1(y_BDN), 0.01)
        y_BDN = F.pad(y_BDN, (2, 0)) if cache is None else cache.prepend(self, y_BDN, 2)
        return x_BND + self.conv2(y_BDN).transpose(1, 2)


class Upsample(nn.Module):
    """Repeats codes four times, then convolves causally over two codes and the current frame (kernel 9)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2 * rates.FRAMES_PER_CODE_DECODER + 1)

    def forward(self, x_BND: Tensor, cache: StreamCache | None) -> Tensor:
        """(B, N, D) -> (B, 4 N, D)."""
        left = 2 * rates.FRAMES_PER_CODE_DECODER
        y_BDT = x_BND.transpose(1, 2).repeat_interleave(rates.FRAMES_PER_CODE_DECODER, dim=-1)
        y_BDT = F.pad(y_BDT, (left, 0)) if cache is None else cache.prepend(self, y_BDT, left)
        return self.conv(y_BDT).transpose(1, 2)


@dataclass
class EncoderCaches:
    """State of a stream: one cache at code rate, one at frame rate."""

    codes: StreamCache
    frames: StreamCache

    @classmethod
    def empty(cls, chunks: Chunks) -> "EncoderCaches":
        """State before the first step; `chunks` is given at code rate."""
        return cls(StreamCache(chunks), StreamCache(chunks.times(rates.FRAMES_PER_CODE_DECODER)))


class UpsampleConformerEncoder(nn.Module):
    """(B, N, D) at 12.5 Hz -> (B, 4 N, D) at 50 Hz.

    Args:
        width: Width D.
        heads: Number of attention heads.
        inner: Width of the feed-forward layers.
        layers: Number of layers before upsampling; four more follow it.
        dropout: Dropout of attention, feed-forward and residual branches in training.
    """

    def __init__(self, width: int, heads: int, inner: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = Embed(width, dropout)
        self.after_norm = nn.LayerNorm(width)
        self.pre_lookahead_layer = PreLookahead(width)
        self.encoders = nn.ModuleList(ConformerLayer(width, heads, inner, dropout) for _ in range(layers))
        self.up_layer = Upsample(width)
        self.up_embed = Embed(width, dropout)
        self.up_encoders = nn.ModuleList(
            ConformerLayer(width, heads, inner, dropout) for _ in range(UP_LAYERS)
        )

    def forward(
        self,
        x_BND: Tensor,
        lengths_B: Tensor,
        chunks: Chunks | None = None,
        ahead_BAD: Tensor | None = None,
    ) -> Tensor:
        """Encodes whole utterances: (B, N, D) -> (B, 4 N, D). Padding is zeroed, so that the frames of an
        item do not depend on the batch.

        Args:
            x_BND: Code embeddings (B, N, D).
            lengths_B: Number of codes of each item; the rest is padding.
            chunks: Chunk-causal attention at code rate; None: full attention.
            ahead_BAD: Embeddings of the next three codes (B, A, D); None: end of the utterance.
        """
        x_BND = self.embed(x_BND)
        x_BND = x_BND * length_mask(lengths_B, x_BND.shape[1])[..., None]
        x_BND = self.pre_lookahead_layer(x_BND, None if ahead_BAD is None else self.embed(ahead_BAD), None)
        offsets = Offsets.within(x_BND.shape[1], x_BND)
        seen = seen_keys(lengths_B, x_BND.shape[1], chunks)
        for layer in self.encoders:
            x_BND = layer(x_BND, offsets, seen, None)
        ratio = rates.FRAMES_PER_CODE_DECODER
        x_BTD = self.up_embed(self.up_layer(x_BND, None))
        offsets = Offsets.within(x_BTD.shape[1], x_BTD)
        seen = seen_keys(lengths_B * ratio, x_BTD.shape[1], chunks and chunks.times(ratio))
        for layer in self.up_encoders:
            x_BTD = layer(x_BTD, offsets, seen, None)
        return self.after_norm(x_BTD)

    def step(self, x_BND: Tensor, ahead_BAD: Tensor, caches: EncoderCaches) -> Tensor:
        """Encodes the next chunk of a stream; the result equals that of `forward` with `chunks`.

        Args:
            x_BND: Code embeddings of the chunk (B, N, D).
            ahead_BAD: Embeddings of the next three codes (B, A, D), fewer at the end of the utterance.
            caches: State of the stream.
        """
        x_BND = self.embed(x_BND)
        cache = caches.codes
        cache.begin(x_BND.shape[1], x_BND.device)
        x_BND = self.pre_lookahead_layer(x_BND, self.embed(ahead_BAD), cache)
        offsets = Offsets.between(cache.positions, cache.slot_positions, x_BND)
        for layer in self.encoders:
            x_BND = layer(x_BND, offsets, cache.seen, cache)
        cache = caches.frames
        cache.begin(x_BND.shape[1] * rates.FRAMES_PER_CODE_DECODER, x_BND.device)
        x_BTD = self.up_embed(self.up_layer(x_BND, cache))
        offsets = Offsets.between(cache.positions, cache.slot_positions, x_BTD)
        for layer in self.up_encoders:
            x_BTD = layer(x_BTD, offsets, cache.seen, cache)
        return self.after_norm(x_BTD)
