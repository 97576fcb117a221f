"""Checks that a backbone can be split and packed, by its parts and by what it computes.

Decoders differ in ways that no list of names covers: scaled logits, layers that do not pass on the arguments
that keep documents apart, rotary frequencies that depend on the longest document. Therefore a small random
copy with two layers is run. The logits must be equal for two documents packed together, for each document
alone, for the backbone itself, and for rows fed one at a time with a cache.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from lit_moss.errors import UserError, first_line
from lit_moss.llm.branches import Network
from lit_moss.llm.config import SplitConfig
from lit_moss.llm.generate import cached_logits
from lit_moss.llm.rows import RowFormat

Split = Callable[[nn.Module, SplitConfig], Network]  # builds the split model of a backbone: `SplitLM`

_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
_LENGTHS = (7, 12)  # rows of the two documents; attention windows are reduced to 4
_CACHED = 4
_WORDS = 96
_TOLERANCE = 1e-3  # relative to the logits' spread; equivalent kernels differ by 1e-6
# Sizes of the copy, used where the config has the field. Only sizes, no options that change the computation.
_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "ffn_hidden_size": 96, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "num_experts_per_token": 2,
    "moe_topk": 2, "moe_k": 2, "first_k_dense_replace": 1, "q_lora_rank": 24, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "qk_head_dim": 24, "v_head_dim": 16,
    "max_window_layers": 1,    "vocab_size": _WORDS, "initializer_range": 0.2, "dtype": "float32",
}  # fmt: skip


def check_parts(backbone: nn.Module, config: PretrainedConfig) -> None:
    """Checks that a backbone consists of the standard parts that the split can handle, and of no others.

    Raises:
        UserError: if a part is missing or not standard.
    """
    inner = getattr(backbone, "model", None)
    if inner is None or not all(hasattr(inner, p) for p in _PARTS) or not hasattr(backbone, "lm_head"):
        raise UserError(
            f"{config.model_type} cannot be split: expected a decoder with {', '.join(_PARTS)} and lm_head, "
            "such as Qwen3, Qwen2 or Llama"
        )
    scales = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
    scaled = [name for name in scales if getattr(config, name, 1.0) not in (None, 1.0)]
    if scaled:
        raise UserError(
            f"{config.model_type} scales its parts ({', '.join(scaled)}): expected a decoder without, such "
            "as Qwen3, Qwen2 or Llama"
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not getattr(config, "layer_types", None) and getattr(config, "sliding_window", None):
        kinds = {"sliding_attention"}  # Mistral's configs do this
    if kinds != {"full_attention"}:
        raise UserError(
            f"{config.model_type} with layers of {sorted(kinds)}: only full attention can be packed here"
        )


def check_backbone(config: PretrainedConfig, split: Split) -> None:
    """Checks the parts and the results of a small random copy; takes 0.1 s, once per process and config.

    Args:
        config: Config of the backbone.
        split: Builds the split model: `SplitLM`.

    Raises:
        UserError: if the split or packed backbone would compute something different.
    """
    key = json.dumps(config.to_dict(), sort_keys=True, default=str)
    if key in _checked:
        return
    devices: list[int] = []  # only the CPU's random state is used; it is restored afterwards
    with (
        _float32_by_default(),
        torch.random.fork_rng(devices),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        torch.manual_seed(0)
        try:
            with torch.device("meta"):
                empty: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
        except Exception as error:
            _refuse(
                config.model_type, f"cannot be made by transformers from its config ({first_line(error)})"
            )
        check_parts(empty, config)
        _check_rotation(empty.model.rotary_emb, config)
        _check_computation(config, split)
    _checked.add(key)


_checked: set[str] = set()


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Resets torch's default dtype, which Lightning sets to bfloat16 for `precision: bf16-true`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _check_computation(config: PretrainedConfig, split: Split) -> None:
    kind = config.model_type
    backbone, rows = _small_backbone(config)
    expected = [backbone(document[None], use_cache=False).logits[0] for document in rows]
    if drops := _dropouts(config):
        backbone.train()
        twice = [backbone(rows[1][None], use_cache=False).logits for _ in range(2)]
        backbone.eval()
        if not torch.equal(*twice):
            _refuse(
                kind,
                f"trains with dropout ({', '.join(drops)}), which packed documents do not have: set it to 0 "
                "in config.json",
            )
    lm = _split(backbone, split)
    packed = torch.cat(rows)[None]
    ids = (torch.arange(packed.shape[1]) >= _LENGTHS[0]).long()[None]
    try:
        alone = [lm(document[None]).text_logits[0] for document in rows]
        together = lm(packed, document_ids=ids).text_logits[0].split(list(_LENGTHS))
        following = torch.stack([document[-_CACHED:] for document in rows])
        cached = cached_logits(lm, [document[:-_CACHED].tolist() for document in rows], following)
    except Exception as error:
        _refuse(
            kind,
            f"has layers that do not run without its model ({type(error).__name__}: {first_line(error)})",
        )
    _compare(kind, "its layers alone do not give the backbone's own logits", alone, expected)
    _compare(kind, "packed documents are not kept apart", together, alone)
    last = [logits[-_CACHED - 1 :] for logits in alone]
    _compare(kind, "row by row, with a cache, its logits differ", cached, last)


def _compare(kind: str, what: str, logits: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for ours, theirs in zip(logits, expected, strict=True):
        off = float((ours[:, :_WORDS] - theirs[:, :_WORDS]).abs().max())
        if not off <= _TOLERANCE * float(theirs.std()):
            _refuse(
                kind,
                f"does not compute what the split model computes: {what} (off by {off:.2g} in a small random "
                "copy)",
            )


def _refuse(kind: str, why: str) -> NoReturn:
    raise UserError(f"{kind} {why}; expected a decoder such as Qwen3, Qwen2 or Llama") from sys.exception()


def _check_rotation(rotary: nn.Module, config: PretrainedConfig) -> None:
    """Checks that the rotation of a row depends on its position alone, not on other rows of the pack."""
    far = 8 * (getattr(config, "max_position_embeddings", None) or 4096)
    x = torch.zeros(1, 5, 1)
    try:
        near = type(rotary)(config=config)(x[:, :4], position_ids=torch.arange(4)[None])
        beside = type(rotary)(config=config)(x, position_ids=torch.tensor([[0, 1, 2, 3, far]]))
    except Exception as error:
        _refuse(config.model_type, f"rotates by more than positions ({first_line(error)})")
    if not isinstance(near, tuple):
        _refuse(config.model_type, "rotates by something else than cosines and sines")
    if not all(torch.equal(a, b[:, :4]) for a, b in zip(near, beside, strict=True)):
        kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
        _refuse(
            config.model_type,
            f"has rotary frequencies that follow the longest document of a pack (rope_type {kind!r}): set "
            "another rope_type in config.json",
        )


def _dropouts(config: PretrainedConfig) -> dict[str, Any]:
    fields = config.to_dict().items()
    return {k: v for k, v in fields if "drop" in k and isinstance(v, int | float) and 0 < v <= 1}


def _small_backbone(config: PretrainedConfig) -> tuple[Any, list[Tensor]]:
    """The small copy and two documents; has the true sizes if smaller ones are invalid for the model type."""
    causes: list[Exception] = []
    for fields in (_shrunk(config, _SIZES), _shrunk(config, {"vocab_size": _WORDS})):
        try:
            small = AutoConfig.for_model(config.model_type, **fields)
            with torch.device("meta"):
                sizes = AutoModelForCausalLM.from_config(small, dtype=torch.float32).num_parameters()
            if sizes > 1e9:
                raise ValueError(f"two layers have {sizes:.2g} parameters")
            backbone: Any = AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()
            for p in backbone.parameters():
                if p.ndim == 1:  # norms of ones and biases of zeros would hide differences
                    p.add_(0.3 * torch.randn(p.shape))
            rows = [torch.randint(8, _WORDS - 8, (n,)) for n in _LENGTHS]
            backbone(rows[0][None], use_cache=False)
            return backbone, rows
        except Exception as error:
            causes.append(error)
    _refuse(config.model_type, f"does not run in a small random copy ({first_line(causes[-1])})")


def _shrunk(config: PretrainedConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    fields = config.to_dict()
    layers = config.num_hidden_layers
    fields.pop("model_type", None)
    fields["num_hidden_layers"] = min(2, layers)
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    drops = _dropouts(config)
    for name, value in list(fields.items()):
        if name in drops:
            fields[name] = 0.5
        elif isinstance(value, list) and len(value) == layers > 2:
            fields[name] = [value[0], value[-1]]  # one entry per layer
        elif isinstance(value, int) and not isinstance(value, bool) and ("window" in name or "chunk" in name):
            fields[name] = 4
        elif name.endswith("token_id") and value is not None:
            fields[name] = 1
        elif name in sizes and value is not None:
            fields[name] = sizes[name]
    if "hidden_size" in sizes and heads:
        fields["num_attention_heads"] = 4
        if groups:
            fields["num_key_value_heads"] = 4 if groups == heads else 1 if groups == 1 else 2
    return fields


def _split(backbone: Any, split: Split) -> Network:
    """The split model of the copy, built as `SplitLM.from_backbone` does."""
    row_format = RowFormat(_WORDS, 8, _WORDS - 2, 6, _WORDS - 1, 0)
    config = copy.deepcopy(backbone.config)
    config.vocab_size, config.tie_word_embeddings = _WORDS, False
    return split(backbone, SplitConfig(config, row_format, 1)).eval()
