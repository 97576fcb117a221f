"""Loads files of plain tensors (`flow.pt`, `hift.pt`) into modules. Code in the files is never executed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_moss.errors import UserError

# Names of weight norm parameters in torch before 2.0 -> now.
OLD_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}


@dataclass(frozen=True)
class LoadReport:
    """Result of loading weights, by parameter name.

    Args:
        loaded: Tensors loaded from the source.
        kept: Tensors missing in the source, left unchanged (a Whisper encoder has no codebook).
        reshaped: Tensors with another shape in the source, left unchanged: `name: source shape, ours shape`.
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    reshaped: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded"
        if self.kept:
            text += f", {len(self.kept)} kept as initialised ({_some(self.kept, ', ')})"
        return text + (
            f", {len(self.reshaped)} of another shape skipped ({_some(self.reshaped, '; ')})"
            if self.reshaped
            else ""
        )


def _some(names: tuple[str, ...], between: str) -> str:
    return between.join(names[:8]) + (" …" if len(names) > 8 else "")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a `.pt` or `.safetensors` file, with weight norm under its current names.

    Raises:
        UserError: if the file is missing, damaged, or contains anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}: expected a state dict (.pt or .safetensors)")
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): get it again") from error
    except Exception as error:
        raise UserError(
            f"{path} is no file of plain tensors ({type(error).__name__}): refused; expected what "
            "torch.save(model.state_dict()) writes"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no plain state dict: expected tensors by parameter name")
    return {_present_name(name): value for name, value in content.items()}


def _present_name(name: str) -> str:
    head, _, last = name.rpartition(".")
    return f"{head}.{OLD_WEIGHT_NORM[last]}" if last in OLD_WEIGHT_NORM else name


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Rejects damaged weights here, where their name is known: later they would only cause silence or noise.

    Raises:
        UserError: if a value is NaN or infinite, or a tensor contains integers (quantized weights).
    """
    for key, value in tensors.items():
        if not value.is_floating_point():
            raise UserError(f"{name} has {key} as {value.dtype}, expected float weights: get it unquantized")
        if not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).sum())
            raise UserError(
                f"{name} is damaged: {bad} of {value.numel()} numbers of {key} are not finite; get it again"
            )


def load_fitting(module: nn.Module, tensors: dict[str, Tensor], name: str) -> LoadReport:
    """Copies every tensor whose name and shape fit, and reports the others.

    Raises:
        UserError: if no tensor fits, or a value of one that fits is not finite.
    """
    loaded, kept, reshaped = [], [], []
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key not in tensors:
                kept.append(key)
            elif tensors[key].shape != value.shape:
                reshaped.append(f"{key}: {tuple(tensors[key].shape)}, ours {tuple(value.shape)}")
            else:
                check_finite({key: tensors[key]}, name)
                value.copy_(tensors[key])
                loaded.append(key)
    report = LoadReport(tuple(loaded), tuple(kept), tuple(reshaped))
    if not loaded:
        raise UserError(f"{name} holds nothing of {type(module).__name__}: {report}")
    return report
