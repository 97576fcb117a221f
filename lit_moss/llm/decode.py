"""One new row through a block of layers with as few operations as the mathematics has.

transformers' layers spend a third of a small model's decoding on CPU in bookkeeping between the products.
This is the same arithmetic, read off the same modules' weights; `fits` tells whether a layer's parts are the
known ones, and the layer's own forward is used where they are not. Measured:
`python -m experiments.generation_speed`.
Shapes: B sequences, H heads, H_kv key-value heads, n cached rows, D width, E width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_moss.llm.cache import KVCache

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def fits(layer: Any) -> bool:
    """True for pre-norm layers of RMSNorm, rotary attention and a gated SiLU MLP, that is
    Llama's, Qwen2's, Qwen3's."""
    parts = {name for name, _ in layer.named_children()}
    if parts != _LAYER or layer.training:
        return False
    attention = {name for name, _ in layer.self_attn.named_children()}
    mlp = {name for name, _ in layer.mlp.named_children()}
    norms = [layer.input_layernorm, layer.post_attention_layernorm, getattr(layer.self_attn, "q_norm", None)]
    linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    return (
        attention <= _ATTENTION
        and mlp <= _MLP
        and len(linears) == 7
        and all(type(m) is nn.Linear for m in linears)
        and "silu" in type(layer.mlp.act_fn).__name__.lower()
        and all(n is None or hasattr(n, "variance_epsilon") for n in norms)
    )


def one_row(layers: nn.ModuleList, cache: KVCache, h_B1D: Tensor, rope: Any, mask: Tensor | None) -> Tensor:
    """Output (B, 1, D) of the layers for one row (B, 1, D); the cache is written, not yet advanced.

    Args:
        layers: Layers for which `fits` holds.
        cache: Their cache.
        h_B1D: Input.
        rope: Cosines and sines (B or 1, 1, E).
        mask: (B, 1, 1, n + 1), True where the row may look; None: everywhere.
    """
    cos, sin = (x[:, :, None] for x in rope)  # (B, 1, 1, E), beside (B, 1, H, E)
    half = cos.shape[-1] // 2
    # rotate_half with its sign folded into the sines: (x roll half) * sin'
    sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    for module in layers:
        layer: Any = module
        h_B1D = _layer(layer, cache, h_B1D, cos, sin, half, mask)
    return h_B1D


def _layer(
    layer: Any, cache: KVCache, h: Tensor, cos: Tensor, sin: Tensor, half: int, mask: Tensor | None
) -> Tensor:
    attn, mlp = layer.self_attn, layer.mlp
    B, E = h.shape[0], attn.head_dim
    x = _norm(h, layer.input_layernorm)
    q, k, v = (_linear(x, p).view(B, 1, -1, E) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
    if hasattr(attn, "q_norm"):
        q, k = _norm(q, attn.q_norm), _norm(k, attn.k_norm)
    q = q * cos + q.roll(half, -1) * sin
    k = k * cos + k.roll(half, -1) * sin
    keys, values = cache.update(k.transpose(1, 2), v.transpose(1, 2), attn.layer_idx)
    # The query heads of one key-value head stand as its rows: no copy of keys and values for each head.
    kv_heads = k.shape[2]
    q = q.view(B, kv_heads, -1, E)
    out = F.scaled_dot_product_attention(q, keys, values, mask, scale=attn.scaling)
    h = h + _linear(out.reshape(B, 1, -1), attn.o_proj)
    x = _norm(h, layer.post_attention_layernorm)
    return h + _linear(F.silu(_linear(x, mlp.gate_proj)) * _linear(x, mlp.up_proj), mlp.down_proj)


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """On CPU a product of one bfloat16 row is a third faster as matrix times vector than as `linear`."""
    if x.dtype == torch.bfloat16 and not x.is_cuda and x.shape[0] == 1:
        y = torch.mv(linear.weight, x.view(-1))
        return (y if linear.bias is None else y + linear.bias).view(1, 1, -1)
    return F.linear(x, linear.weight, linear.bias)


def head_row(x_BD: Tensor, head: nn.Linear) -> Tensor:
    """Logits (B, V) of a head."""
    return _linear(x_BD[:, None], head)[:, 0]
