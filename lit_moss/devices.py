"""The device on which a verb computes: `--device auto`, `cpu`, `cuda`."""

from typing import Protocol, Self, TypeVar

from lit_moss.errors import UserError


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
            f"--device {device!r} cannot be used ({str(error).splitlines()[0]}): auto, cpu or cuda"
        ) from error
