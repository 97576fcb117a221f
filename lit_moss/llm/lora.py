"""Low-rank adapters (LoRA, arXiv:2106.09685) on the linear layers of a split model, using the `peft` library.

    y = W x + (alpha / r) B A x      W (out, in) stays frozen; A (r, in) starts random, B (out, r) at zero

While a run trains adapters, peft's layer replaces the linear layer and contains it:

    q_proj.weight  ->  q_proj.base_layer.weight, q_proj.lora_A.default.weight, q_proj.lora_B.default.weight

These names exist only in such a run and its checkpoints. Everything that reads them (the next stage,
`open_lm`, the export) gets W + (alpha / r) B A under the released names, without needing peft. This file
defines the names and the sums: `base_name`, `separate`, `merged`.
"""

import contextlib
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lit_moss.errors import UserError

# Part -> prefix of its layers' names inside the model.
BLOCKS = {
    "trunk": "model.shared_block.layers.",
    "text_tail": "model.text_block.layers.",
    "audio_tail": "model.audio_block.layers.",
}
_ADAPTER = re.compile(r"(.+)\.lora_([AB])\.default\.weight")


def _parts() -> list[str]:
    return list(BLOCKS)


def _modules() -> list[str]:
    return ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Lora:
    """Options of the LoRA adapters.

    Args:
        rank: Rank r: rows of A and columns of B; at least 1.
        alpha: The product B A is multiplied by alpha / rank.
        dropout: Dropout probability on an adapter's inputs in training.
        parts: Parts of the model that get adapters: trunk, text_tail, audio_tail.
        modules: Names of the linear layers within these parts that get an adapter.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    parts: list[str] = field(default_factory=_parts)
    modules: list[str] = field(default_factory=_modules)

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"model.lora has rank {self.rank} and dropout {self.dropout}: expected a rank of 1 or more "
                "and a dropout from 0 to below 1"
            )
        unknown = [part for part in self.parts if part not in BLOCKS]
        if unknown or not self.parts or not self.modules:
            raise UserError(
                f"model.lora has parts {self.parts} and modules {self.modules}: expected parts of "
                f"{', '.join(BLOCKS)}, and at least one module"
            )

    @property
    def scale(self) -> float:
        """Factor on the product B A."""
        return self.alpha / self.rank

    def record(self) -> dict[str, Any]:
        """Content of a checkpoint's `lora` entry: the options and `scale`."""
        return asdict(self) | {"scale": self.scale}


def add_adapters(lm: nn.Module, lora: Lora) -> None:
    """Adds adapters to the chosen layers. The model's outputs do not change by a bit, since B is zero.

    Args:
        lm: A `SplitLM`, changed in place.
        lora: The layers and the sizes of the adapters.

    Raises:
        UserError: if peft is not installed, or the model lacks the named layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise UserError("model.lora needs peft: pip install 'lit-moss[finetune]'") from error
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=_chosen(lm, lora)  # pyright: ignore
    )  # fmt: skip
    inject_adapter_in_model(config, lm)
    for layer in lm.modules():
        if isinstance(layer, LoraLayer):
            # Otherwise peft would copy the inputs to float32 under autocast, which casts them back to
            # bfloat16.
            layer.cast_input_dtype_enabled = False


def _chosen(lm: nn.Module, lora: Lora) -> list[str]:
    """Names of the layers that get adapters."""
    linears = [name for name, module in lm.named_modules() if isinstance(module, nn.Linear)]
    inside = [name for name in linears if name.startswith(tuple(BLOCKS[part] for part in lora.parts))]
    found = {name.rpartition(".")[2] for name in inside}
    missing = [module for module in lora.modules if module not in found]
    if missing:
        where = ", ".join(lora.parts)
        raise UserError(
            f"model.lora names modules {missing}, which are no linear layers of {where} in this model: "
            + (f"expected some of {', '.join(sorted(found))}" if found else "its layers have none")
        )
    return [name for name in inside if name.rpartition(".")[2] in lora.modules]


@contextlib.contextmanager
def without_adapters(lm: nn.Module) -> Iterator[None]:
    """Disables the adapters: the model then computes its outputs with the base weights alone."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in lm.modules() if isinstance(layer, LoraLayer)]
    # peft's switch also sets requires_grad, which is for the freezing callback to decide.
    trains = {p: p.requires_grad for p in lm.parameters()}
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for p, required in trains.items():
            p.requires_grad_(required)


# --- names --------------------------------------------------------------------------------------------------


def base_name(name: str) -> str:
    """The released name of a weight, also if an adapter wraps it."""
    return name.replace(".base_layer.", ".")


def is_adapter(name: str) -> bool:
    """Whether a parameter name belongs to an adapter."""
    return _ADAPTER.fullmatch(name) is not None


def check_trained(names: Iterable[str], trained: Container[str]) -> None:
    """Compares the adapters with the parameters that a run's freezing rules train.

    Args:
        names: Names of all parameters.
        trained: Names of the parameters that train at some step.

    Raises:
        UserError: if an adapter never trains, or a weight that has an adapter does.
    """
    names = list(names)
    adapters = [name for name in names if is_adapter(name)]
    idle = [name for name in adapters if name not in trained]
    if idle:
        raise UserError(
            f"no stage of StagedFreezing trains {len(idle)} of the {len(adapters)} tensors of adapters that "
            f"model.lora adds (first {idle[0]}): give policy lora, or fewer model.lora.parts"
        )
    moving = [name for name in names if name.endswith(".base_layer.weight") and name in trained]
    if adapters and moving:
        raise UserError(
            f"StagedFreezing trains {len(moving)} tensors that have adapters by model.lora (first "
            f"{base_name(moving[0])}): give policy lora, or leave model.lora out"
        )


def check_resumed(stored: Mapping[str, Any] | None, lora: Lora | None) -> None:
    """Refuses to resume a run with adapters other than those of its checkpoint.

    Args:
        stored: The checkpoint's `lora` entry; None: no adapters.
        lora: The run's options.

    Raises:
        UserError: if they differ in anything but dropout.
    """
    now = None if lora is None else lora.record()
    keys = ("rank", "alpha", "parts", "modules")
    theirs, ours = (None if x is None else {key: x[key] for key in keys} for x in (stored, now))
    if theirs != ours:
        raise UserError(
            f"the checkpoint's adapters are {_words(theirs)}, model.lora gives {_words(ours)}: resume with "
            "the same, or start a new run with model.init_args.init_from"
        )


def _words(options: dict[str, Any] | None) -> str:
    return "none" if options is None else str(options)


# --- merging ------------------------------------------------------------------------------------------------


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A in float32.

    Args:
        weight: W (out, in).
        a: A (r, in).
        b: B (out, r).
        scale: alpha / r.
    """
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)


def separate(tensors: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Separates the tensors of a checkpoint into weights and adapters.

    Args:
        tensors: Mapping whose keys are tensor names, with any prefix; the values are not used.

    Returns:
        A mapping released name -> name of all weights that are present; and a mapping released name -> names
        of A and B for the weights that have an adapter.

    Raises:
        UserError: if an adapter has only one of A and B.
    """
    weights: dict[str, str] = {}
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        match = _ADAPTER.fullmatch(name)
        if match is None:
            weights[base_name(name)] = name
        else:
            found.setdefault(f"{match[1]}.weight", {})[match[2]] = name
    for weight, pair in found.items():
        if len(pair) != 2:
            raise UserError(f"{weight} has half an adapter ({', '.join(pair.values())}): the file is damaged")
    return weights, {weight: (pair["A"], pair["B"]) for weight, pair in found.items()}


class Merged(Mapping[str, Tensor]):
    """Tensors of a LoRA run under the released names; each is computed when it is looked up.

    Args:
        tensors: Name -> tensor of a checkpoint or module, with any prefix; may be a mapping that reads one
            tensor at a time.
        scale: Factor on B A: `scale` in the checkpoint's `lora` entry.
    """

    def __init__(self, tensors: Mapping[str, Tensor], scale: float) -> None:
        self.scale, self._tensors = scale, tensors
        self._weights, self._adapters = separate(tensors)
        lost = [name for name in self._adapters if name not in self._weights]
        if lost:
            raise UserError(
                f"{len(lost)} adapters have no weight that they belong to (first {lost[0]}): the checkpoint "
                "leaves frozen weights out, put those of its backbone beside them"
            )

    def __getitem__(self, name: str) -> Tensor:
        weight = self._tensors[self._weights[name]]
        if name not in self._adapters:
            return weight
        a, b = (self._tensors[adapter] for adapter in self._adapters[name])
        return merged_weight(weight, a, b, self.scale).to(torch.promote_types(weight.dtype, a.dtype))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def merged(tensors: Mapping[str, Tensor], lora: Mapping[str, Any] | None) -> Mapping[str, Tensor]:
    """Weights of a checkpoint under the released names, with its adapters merged.

    Args:
        tensors: The checkpoint's tensors, with any prefix; may be a mapping that reads one tensor at a time.
        lora: The checkpoint's `lora` entry; None: no adapters, and the tensors are returned unchanged.

    Returns:
        Name -> tensor. Sums are computed in float32 when they are looked up, and returned in the wider data
        type of weight and adapter: float32 where `frozen_dtype` stored the weights in bfloat16.

    Raises:
        UserError: if a weight is missing.
    """
    return tensors if lora is None else Merged(tensors, float(lora["scale"]))


@torch.no_grad()
def merge_adapters(lm: nn.Module) -> None:
    """Merges a model's adapters into the weights that they belong to, and removes them."""
    if not any(is_adapter(name) for name, _ in lm.named_parameters()):
        return
    from peft.tuners.lora import LoraLayer

    adapted = [(name, layer) for name, layer in lm.named_modules() if isinstance(layer, LoraLayer)]
    for name, layer in adapted:
        linear: Any = layer.base_layer
        matrices: list[Any] = [layer.lora_A["default"], layer.lora_B["default"]]
        a, b = (matrix.weight for matrix in matrices)
        linear.weight.copy_(merged_weight(linear.weight, a, b, layer.scaling["default"]))
        lm.set_submodule(name, linear)


def plain_state(lm: nn.Module) -> Mapping[str, Tensor]:
    """`state_dict()` of a model under the released names, with its adapters merged."""
    state = lm.state_dict()
    if not any(is_adapter(name) for name in state):
        return state
    from peft.tuners.lora import LoraLayer

    scale = next(layer.scaling["default"] for layer in lm.modules() if isinstance(layer, LoraLayer))
    return Merged(state, scale)
