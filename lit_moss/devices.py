"""The device on which a verb computes, `--device auto`, `cpu`, `cuda`, and what it is fast at."""

from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from lit_moss.errors import UserError, first_line

if TYPE_CHECKING:
    import torch


class CanMove(Protocol):
    """A part with tensors: a module, a tokenizer, a codec."""

    def to(self, device: str, /) -> Self:
        """Moves it; returns itself."""
        ...


Movable = TypeVar("Movable", bound=CanMove)


def moved(part: Movable, name: str) -> Movable:
    """Moves `part` to the device of that name; `auto` is CUDA if there is any.

    Raises:
        UserError: if there is no such device, or it cannot be used.
    """
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.device(device)
    except RuntimeError as error:  # whose message lists every device that torch knows
        raise UserError(f"--device is {device!r}, expected auto, cpu or cuda") from error
    try:
        return part.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {device!r} cannot be used ({first_line(error)}): auto, cpu or cuda"
        ) from error


def has_fast_bf16(device: str = "auto") -> bool:
    """Whether products in bfloat16 are faster than in float32 there.

    A processor needs units for them (AMX, AVX512-BF16, or ARM's): without, a product takes ten times as long
    as in float32 (AMD EPYC with AVX2, 1024 x 576 x 1536, one thread: 209 and 22 ms).

    Args:
        device: `auto` (CUDA if there is any, else Apple's GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
    """
    import torch

    if device == "auto":
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else device
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return True
    units = torch.cpu.get_capabilities()
    return any(units.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def autocast_dtype(device: "torch.device") -> "torch.dtype | None":
    """Data type of autocast on a device, or None if autocast is off there."""
    import torch

    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
