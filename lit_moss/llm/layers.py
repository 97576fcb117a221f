"""Decoder layers of Llama, Qwen2, Qwen3 and Mistral with custom backwards. Parameters, names and forward bits
equal those of transformers' modules; training needs less memory and fewer copies.

    h = h + o(attention(rotate(q), rotate(k), v)) of norm(h)
    h = h + down(silu(gate) up) of norm(h)

Autograd would keep every intermediate of a norm, a rotation and a gated MLP, in float32 where autocast
promotes, and would cast the same rows once per projection. Here each of these operations keeps only its
input. The gain is measured by `python -m experiments.benches.step_cost` (numbers in experiments/LOG.md).
Layers of other types remain transformers' own, see `own_layer`.
Shapes: B sequences, L rows, D width, H heads, H_kv key-value heads, E width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_moss.devices import autocast_dtype
from lit_moss.llm.attention import attend

_KNOWN = {f"{name}DecoderLayer" for name in ("Llama", "Qwen2", "Qwen3", "Mistral")}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def own_layer(layer: nn.Module) -> Any:
    """Returns a `DecoderLayer` with the same parameters, or the layer itself unless it is a known pre-norm
    layer with RMSNorm, rotary attention and a gated SiLU MLP."""
    return DecoderLayer(layer) if _fits(layer) else layer


def own_norm(norm: nn.Module) -> Any:
    """Returns an `RMSNorm` with the same weight, or the norm itself if it is of another type."""
    return RMSNorm(norm) if "RMSNorm" in type(norm).__name__ and hasattr(norm, "variance_epsilon") else norm


def _fits(layer: Any) -> bool:
    # Other layers with the same parts compute something different: Granite scales, Helium and Ernie rotate
    # adjacent elements, SmolLM3 has layers without rotation.
    if type(layer).__name__ not in _KNOWN or {name for name, _ in layer.named_children()} != _LAYER:
        return False
    attention = {name for name, _ in layer.self_attn.named_children()}
    mlp = {name for name, _ in layer.mlp.named_children()}
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(layer.self_attn, n) for n in ("q_norm", "k_norm") if n in attention]
    linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    return (
        attention <= _ATTENTION
        and mlp <= _MLP
        and len(linears) == 7
        and all(type(m) is nn.Linear for m in linears)
        and "silu" in type(layer.mlp.act_fn).__name__.lower()
        and all("RMSNorm" in type(n).__name__ and hasattr(n, "variance_epsilon") for n in norms)
        and not getattr(layer.self_attn, "attention_dropout", 0.0)
    )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Args:
        norm: transformers' module; its weight is shared.
        before_linear: Whether the result is the input of projections. Under autocast it is then cast once
            instead of once per projection.
    """

    def __init__(self, norm: Any, before_linear: bool = True) -> None:
        super().__init__()
        self.before_linear = before_linear
        self.weight: nn.Parameter = norm.weight
        self.variance_epsilon: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        dtype = autocast_dtype(x.device) if self.before_linear else None
        return _RMSNorm.apply(x, self.weight, self.variance_epsilon, dtype)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm whose backward keeps x and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype | None) -> Tensor:
        # Same order of operations as in transformers, for identical bits.
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        # Under autocast x is saved in its dtype, as projections do: 0.15 GiB less at 2,048 rows, 34 layers.
        ctx.save_for_backward(x if dtype is None else x.to(dtype), scale, weight_D)
        ctx.dtype = x.dtype
        y = weight_D * (wide * scale).to(x.dtype)
        return y if dtype is None else y.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight_D = ctx.saved_tensors
        dy = grads[0].float()
        unit = x.float() * scale
        d_weight = d_x = None
        if ctx.needs_input_grad[1]:
            d_weight = (dy * unit).flatten(0, -2).sum(0).to(weight_D.dtype)
        if ctx.needs_input_grad[0]:
            d_unit = dy * weight_D
            along = (d_unit * unit).mean(-1, keepdim=True)
            d_x = d_unit.sub_(unit.mul_(along)).mul_(scale).to(ctx.dtype)
        return d_x, d_weight, None, None


class Linear(nn.Linear):
    """A projection that, while frozen under autocast, keeps no half-precision copy of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        dtype = autocast_dtype(input.device)
        trains = any(p.requires_grad for p in self.parameters(recurse=False))  # a bias may be trained alone
        if dtype is None or trains or self.weight.dtype == dtype:
            return super().forward(input)
        return _FrozenLinear.apply(input, self.weight, self.bias, dtype)


class _FrozenLinear(torch.autograd.Function):
    """Casts the frozen weights again in the backward. Autocast would keep the cast weights until then: 0.2
    GiB for 107 M parameters. A second cast costs less than a hundredth of the product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype  # not via save_for_backward: FSDP frees and re-gathers it
        return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        return (dy @ ctx.weight.to(dy.dtype)).to(ctx.dtype), None, None, None


def _own_linear(linear: nn.Linear) -> Linear:
    own = Linear(1, 1, bias=False, device="meta")
    own.in_features, own.out_features = linear.in_features, linear.out_features
    own.weight, own.bias = linear.weight, linear.bias
    return own


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj = _own_linear(mlp.gate_proj)
        self.up_proj = _own_linear(mlp.up_proj)
        self.down_proj = _own_linear(mlp.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.down_proj(_Gate.apply(self.gate_proj(x), self.up_proj(x)))


class _Gate(torch.autograd.Function):
    """silu(gate) * up; the backward recomputes silu."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up  # not in place: a compiled graph would lose the gradients of both

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (dy,) = grads
        return torch.ops.aten.silu_backward(dy * up, gate), F.silu(gate).mul_(dy)


class Attention(nn.Module):
    """Rotary causal attention with grouped keys and values, and optional q and k norms (Qwen3)."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj = _own_linear(attention.q_proj)
        self.k_proj = _own_linear(attention.k_proj)
        self.v_proj = _own_linear(attention.v_proj)
        self.o_proj = _own_linear(attention.o_proj)
        self.has_norms = hasattr(attention, "q_norm")
        if self.has_norms:
            # The rotation follows, in float32 as in transformers.
            self.q_norm, self.k_norm = (RMSNorm(n, False) for n in (attention.q_norm, attention.k_norm))
        self.layer_idx: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        # transformers' attention function, used if there are no segments, reads these two.
        self.num_key_value_groups: int = attention.num_key_value_groups
        self.is_causal = True

    def forward(
        self,
        h_BLD: Tensor,
        rope: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D).

        Args:
            h_BLD: Hidden states (B, L, D).
            rope: Cosines and sines of the positions, (B, L, E) each.
            attention_mask: Dense mask for cached decoding, True where a row attends, or None.
            past_key_values: A `KVCache` to append keys and values to, or None.
            **kwargs: Passed to the attention function, such as `segments` of `attend`.
        """
        B, L, _ = h_BLD.shape
        q, k, v = (p(h_BLD).view(B, L, -1, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.has_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        dtype = autocast_dtype(q.device)
        cos, sin = (x[:, :, None] for x in rope)
        q, k = (_Rotation.apply(x, cos, sin, dtype).transpose(1, 2) for x in (q, k))
        v = v.transpose(1, 2)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        out, _ = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(out.reshape(B, L, -1))


class _Rotation(torch.autograd.Function):
    """x * cos + rotate_half(x) * sin; nothing of x is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype | None) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return _rotate(x, cos, sin, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        # The transpose of a rotation is its inverse.
        return _rotate(grads[0], cos, -sin, ctx.dtype), None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype | None) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    y = x * cos
    y[..., :half] -= second * sin[..., :half]
    y[..., half:] += first * sin[..., half:]
    return y if dtype is None else y.to(dtype)


class DecoderLayer(nn.Module):
    """Pre-norm layer: h + attention(norm(h)), then h + mlp(norm(h))."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn = Attention(layer.self_attn)
        self.mlp = GatedMLP(layer.mlp)
        self.input_layernorm = RMSNorm(layer.input_layernorm)
        self.post_attention_layernorm = RMSNorm(layer.post_attention_layernorm)
        self.train(layer.training)

    def forward(
        self,
        h_BLD: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        segments: Any = None,
        **_: Any,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); has the arguments of transformers' decoder layers."""
        h_BLD = h_BLD + self.self_attn(
            self.input_layernorm(h_BLD),
            position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            segments=segments,
        )
        return h_BLD + self.mlp(self.post_attention_layernorm(h_BLD))
