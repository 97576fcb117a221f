"""Runs one new row through a block of layers with as few operations as possible.

    h ─ norm ─ q, k, v ─ rotate, cache ─ attention ─ o ─ + h ─ norm ─ silu(gate) up ─ down ─ + ─ h

The arithmetic and the weights are those of `layers.DecoderLayer`. With transformers' layers, a third of a
small model's decoding time on CPU is spent between the matrix products. Measured by `python -m
experiments.benches.generation_speed`.
Shapes: B sequences, H heads, H_kv key-value heads, n cached rows, D width, E width of a head.
"""

from collections.abc import MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_moss.llm.cache import CacheGroup, KVCache
from lit_moss.llm.layers import DecoderLayer, Linear


def runs_on(layer: nn.Module) -> bool:
    """Whether `one_row` can run the layer: it reads weights directly and would ignore adapters."""
    if not isinstance(layer, DecoderLayer):
        return False
    attn, mlp = layer.self_attn, layer.mlp
    linears = attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    return all(isinstance(linear, Linear) for linear in linears)


def one_row(
    layers: nn.ModuleList, cache: KVCache | CacheGroup, h_B1D: Tensor, rope: Any, mask: Tensor | None
) -> Tensor:
    """Output (B, 1, D) of the layers for one row (B, 1, D). Writes to the cache but does not advance it.

    Args:
        layers: Decoder layers, each accepted by `runs_on`.
        cache: Their cache; a `CacheGroup` holds one cache per sequence.
        h_B1D: Input (B, 1, D).
        rope: Cosines and sines, (B or 1, 1, E) each.
        mask: (B, 1, 1, n + 1), True where the row attends; None: attends everywhere.
    """
    cos, sin = (x[:, :, None] for x in rope)  # (B, 1, 1, E), broadcast over heads
    half = cos.shape[-1] // 2
    # rotate_half with the sign folded into the sines: (x rolled by half) * sin'
    sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    for module in layers:
        layer: Any = module
        h_B1D = _layer(layer, cache, h_B1D, cos, sin, half, mask)
    return h_B1D


def _layer(
    layer: Any,
    cache: KVCache | CacheGroup,
    h: Tensor,
    cos: Tensor,
    sin: Tensor,
    half: int,
    mask: Tensor | None,
) -> Tensor:
    attn, mlp = layer.self_attn, layer.mlp
    B, E = h.shape[0], attn.head_dim
    qkv = _product(_norm(h, layer.input_layernorm), attn.q_proj, attn.k_proj, attn.v_proj).view(B, 1, -1, E)
    kv = attn.k_proj.out_features // E
    v = qkv[:, :, -kv:]
    if attn.has_norms:
        q, k = _norm(qkv[:, :, : -2 * kv], attn.q_norm), _norm(qkv[:, :, -2 * kv : -kv], attn.k_norm)
        qk = torch.cat([q, k], dim=2)
    else:
        qk = qkv[:, :, :-kv]
    qk = (qk * cos).addcmul_(qk.roll(half, -1), sin)
    # Query heads that share a key-value head are passed as rows: keys and values need no copy per head.
    q, k = qk[:, :, :-kv].view(B, kv, -1, E), qk[:, :, -kv:].transpose(1, 2)
    out = cache.attend(q, k, v.transpose(1, 2), attn.layer_idx, mask, attn.scaling)
    h = h + _product(out.reshape(B, 1, -1), attn.o_proj)
    gate, up = _product(_norm(h, layer.post_attention_layernorm), mlp.gate_proj, mlp.up_proj).chunk(2, dim=-1)
    return h + _product(F.silu(gate).mul_(up), mlp.down_proj)


def _norm(x: Tensor, norm: Any) -> Tensor:
    if x.numel() != x.shape[-1] or not _small(x):
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    # On CPU, rms_norm runs eight small operations on one row; this needs four.
    size = torch.linalg.vector_norm(x, dtype=torch.float32).item()
    return (x * (size * size / x.shape[-1] + norm.variance_epsilon) ** -0.5).mul_(norm.weight)


def _product(x: Tensor, *linears: nn.Linear) -> Tensor:
    """Products with all matrices, concatenated along the last dimension.

    Uses oneDNN on CPU, because F.linear runs a single row on one thread (AMD EPYC, 2 cores, 1536 x 576: 11
    against 23 GB/s in float32; 12 against 24 in bfloat16, for which the weights must be in oneDNN's layout).
    """
    if not _ONEDNN or not _small(x) or x.dtype != linears[0].weight.dtype or not _is_packable(x.dtype):
        parts = [F.linear(x, one.weight, one.bias) for one in linears]
    elif x.dtype == torch.float32:
        parts = [_onednn(x, one.weight, one.bias, "none", [], "") for one in linears]
    else:
        weight, bias = _in_layout(linears)
        return _onednn(x, weight, bias, "none", [], "")
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _small(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_onednn: Any = torch.ops.mkldnn._linear_pointwise if _ONEDNN else None
# oneDNN supports bfloat16 only with AVX512 and raises an error otherwise.
_ONEDNN_BF16 = _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _is_packable(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or _ONEDNN_BF16


_layouts: MutableMapping[nn.Linear, tuple[Any, Tensor, Tensor | None]] = WeakKeyDictionary()


def _in_layout(linears: tuple[nn.Linear, ...]) -> tuple[Tensor, Tensor | None]:
    """The weights, concatenated along the output dimension, in oneDNN's layout; cached until they change."""
    tensors = [t for one in linears for t in (one.weight, one.bias) if t is not None]
    state = [(t.data_ptr(), t._version) for t in tensors]
    kept = _layouts.get(linears[0])
    if kept is None or kept[0] != state:
        weight = torch.cat([one.weight.detach() for one in linears])
        biases, bias = [one.bias for one in linears], None
        if any(b is not None for b in biases):
            none = [one.weight.new_zeros(len(one.weight)) for one in linears]
            bias = torch.cat([n if b is None else b.detach() for b, n in zip(biases, none, strict=True)])
        kept = state, torch.ops.mkldnn._reorder_linear_weight(weight, 1), bias
        _layouts[linears[0]] = kept
    return kept[1], kept[2]


def head_row(x_BD: Tensor, head: nn.Linear) -> Tensor:
    """Logits (B, V) of a head for one row (B, D) per sequence."""
    return _product(x_BD[:, None], head)[:, 0]
