"""Attention over packed documents: causal inside each document, nothing across.

    out_i = Σ_j softmax_j(q_i · k_j scale) v_j      over rows j <= i of i's document

transformers' layers call a registered attention function; `attend` is ours. Document borders are passed as
`Segments`, so that a dense mask is built only for the kernel that needs one:

  segments   one causal SDPA call for each document. Exact, and wastes no work: with 2,048 rows of 300-row
             documents a mask would compute 7 times as many products. Default on CPU.
  mask       one SDPA call with a dense mask (B, 1, L, L). The reference implementation in the tests.
  varlen     torch's variable-length flash attention; needs half precision on CUDA, where it is the default.

A sequence with a single document takes SDPA's own causal path, the same call as in transformers, so that its
logits equal the backbone's bit for bit.
Shapes: B sequences, H heads, H_kv key-value heads, L rows, D width of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_moss import cpu_attention
from lit_moss.devices import autocast_dtype
from lit_moss.errors import UserError

NAME = "lit_moss"
Kind = Literal["auto", "segments", "mask", "varlen"]


@dataclass(frozen=True)
class Segments:
    """The documents of packed sequences.

    Args:
        borders: Per sequence: the start of each document, then the sequence length, e.g. [0, 120, 2048].
        positions_BL: Position of each row within its document, int64 (B, L).
        same_BLL: Dense mask, bool (B, L, L), True where a row attends; None unless `kind` is `mask`.
        offsets: Starts of all documents in the flattened (B L) rows, then B L; int32 on the device. None
            unless `kind` is `varlen`.
        longest: Number of rows of the longest document.
        kind: Kernel: `segments`, `mask` or `varlen`.
    """

    borders: list[list[int]]
    positions_BL: Tensor
    same_BLL: Tensor | None
    offsets: Tensor | None
    longest: int
    kind: str

    @classmethod
    def of(
        cls,
        document_ids_BL: Tensor,
        kind: Kind = "auto",
        dtype: torch.dtype | None = None,
        borders: list[list[int]] | None = None,
    ) -> "Segments":
        """Builds the segments from document numbers (B, L): a document ends where the number changes.

        Pass `borders` if they are known; otherwise the host waits for the device to compute them."""
        B, L = document_ids_BL.shape
        if kind == "auto":
            half = dtype in (torch.float16, torch.bfloat16)
            kind = "segments" if not document_ids_BL.is_cuda else "varlen" if half else "mask"
        if kind not in get_args(Kind):
            raise UserError(f"attention is {kind!r}, expected {', '.join(get_args(Kind))}")
        new_BL = starts(document_ids_BL)
        index_L = torch.arange(L, device=document_ids_BL.device)
        start_BL = torch.where(new_BL, index_L, 0).cummax(dim=1).values
        if borders is None:
            borders = [[*row.nonzero().flatten().tolist(), L] for row in new_BL.cpu()]
        longest = max(stop - start for row in borders for start, stop in pairwise(row))
        same_BLL = offsets = None
        if kind == "mask":
            number_BL = new_BL.cumsum(1)
            same_BLL = (number_BL[:, :, None] == number_BL[:, None, :]) & (index_L[:, None] >= index_L)
        if kind == "varlen":
            flat = [b * L + start for b, row in enumerate(borders) for start in row[:-1]]
            offsets = torch.tensor([*flat, B * L], dtype=torch.int32, device="cpu")
            offsets = offsets.to(document_ids_BL.device, non_blocking=True)
        return cls(borders, index_L - start_BL, same_BLL, offsets, longest, kind)


def starts(document_ids_BL: Tensor) -> Tensor:
    """bool (B, L), True at the first row of each document."""
    new_BL = torch.ones_like(document_ids_BL, dtype=torch.bool)
    new_BL[:, 1:] = document_ids_BL[:, 1:] != document_ids_BL[:, :-1]
    return new_BL


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers' layers.

    Args:
        module: The attention module, for its head counts.
        query: (B, H, L, D).
        key: (B, H_kv, L or cached length, D).
        value: (B, H_kv, L or cached length, D).
        attention_mask: Dense mask for cached decoding, True where a row attends, or None.
        segments: Documents of packed rows; None: one document per sequence.
        **kwargs: `scaling`, `dropout`, and further arguments of transformers.

    Returns:
        (B, L, H, D) and None: attention weights are not computed.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return _outside_graphs(query, key, value, kwargs["scaling"], segments), None


def _packed(q: Tensor, k: Tensor, v: Tensor, scale: float, segments: Segments) -> Tensor:
    if segments.kind == "mask":
        assert segments.same_BLL is not None
        k, v = _repeat(k, q.shape[1]), _repeat(v, q.shape[1])
        out = F.scaled_dot_product_attention(q, k, v, segments.same_BLL[:, None], scale=scale)
        return out.transpose(1, 2)
    device = q.device.type
    if device != "cpu" and segments.kind != "varlen":
        return _one_by_one(q, k, v, scale, segments)
    # Autocast does not cover these kernels, and transformers' layers rotate queries and keys in float32.
    if (dtype := autocast_dtype(q.device)) is not None:
        q, k, v = (x.to(dtype) for x in (q, k, v))
    if segments.kind == "varlen":
        return _varlen(q, k, v, scale, segments)
    return _Documents.apply(q, k, v, scale, segments.borders)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, scale: float, segments: Segments) -> Tensor:
    k, v = _repeat(k, q.shape[1]), _repeat(v, q.shape[1])
    rows = []
    for b, borders in enumerate(segments.borders):
        sizes = [stop - start for start, stop in pairwise(borders)]
        parts = zip(*(x[b : b + 1].split(sizes, dim=2) for x in (q, k, v)), strict=True)
        out = [F.scaled_dot_product_attention(*part, is_causal=True, scale=scale) for part in parts]
        rows.append(torch.cat(out, dim=2))
    return torch.cat(rows).transpose(1, 2)


class _Documents(torch.autograd.Function):
    """SDPA's own CPU kernel, called per document; each call writes its part of the output.

    Plain autograd would keep every document's output twice, keep keys and values once per query head, and sum
    the gradients of slices over the whole sequence.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, borders: list[list[int]]) -> Tensor:
        B, H, L, E = q.shape
        out_BLHE = q.new_empty(B, L, H, E)
        lse_BHL = q.new_empty(B, H, L, dtype=_wide(q))
        for here in _places(borders):
            out, lse = cpu_attention.forward(q[here], _repeat(k[here], H), _repeat(v[here], H), scale)
            out_BLHE.transpose(1, 2)[here] = out
            lse_BHL[here] = lse
        ctx.save_for_backward(q, k, v, out_BLHE, lse_BHL)
        ctx.scale, ctx.borders = scale, borders
        return out_BLHE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out_BLHE, lse_BHL = ctx.saved_tensors
        H, kv = q.shape[1], k.shape[1]
        out, d_out = out_BLHE.transpose(1, 2), grads[0].transpose(1, 2)
        # Memory layout of the projections, (B, L, H, E): saves a copy in the backward.
        dq, dk, dv = (torch.empty_like(x.transpose(1, 2)).transpose(1, 2) for x in (q, k, v))
        for here in _places(ctx.borders):
            keys, values = _repeat(k[here], H), _repeat(v[here], H)
            d_query, d_keys, d_values = cpu_attention.backward(
                d_out[here], q[here], keys, values, out[here], lse_BHL[here], ctx.scale
            )
            dq[here] = d_query
            for into, part in ((dk, d_keys), (dv, d_values)):
                into[here] = part if kv == H else part.unflatten(1, (kv, H // kv)).sum(2)
        return dq, dk, dv, None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _places(borders: list[list[int]]) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of each document in (B, H, L) for all B sequences."""
    for b, row in enumerate(borders):
        for start, stop in pairwise(row):
            yield slice(b, b + 1), slice(None), slice(start, stop)


# Document borders change with every batch: a graph that contained them would be recompiled each time.
_outside_graphs: Any = torch.compiler.disable(_packed)


def _varlen(q: Tensor, k: Tensor, v: Tensor, scale: float, segments: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if q.dtype not in (torch.float16, torch.bfloat16):
        raise no_varlen(q.device, q.dtype)
    B, H, L, D = q.shape
    # The kernel supports grouped keys and values directly: copying them per query head would take 4 times the
    # memory in Qwen3-8B, also in the backward.
    flat = [x.transpose(1, 2).reshape(B * L, -1, D) for x in (q, k, v)]
    offsets, longest = segments.offsets, segments.longest
    assert offsets is not None
    attend_flat: Any = varlen_attn
    try:
        out = attend_flat(*flat, offsets, offsets, longest, longest, window_size=(-1, 0), scale=scale)
    except NotImplementedError as error:
        raise no_varlen(q.device, q.dtype) from error
    return out.view(B, L, H, D)


def no_varlen(device: torch.device, dtype: torch.dtype) -> UserError:
    """The error for a device or a dtype that the kernel does not have."""
    return UserError(
        f"attention is varlen on {device.type} in {str(dtype).removeprefix('torch.')}: the kernel needs CUDA "
        "and bfloat16 or float16, expected auto, segments or mask here"
    )


def _repeat(x: Tensor, heads: int) -> Tensor:
    """(B, H_kv, L, D) -> (B, heads, L, D) for grouped-query attention."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


AttentionInterface.register(NAME, attend)
