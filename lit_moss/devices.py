"""Where a verb computes: `--device auto`, `cpu`, `cuda`."""

from typing import Any, TypeVar

from lit_moss.errors import UserError

Movable = TypeVar("Movable", bound=Any)  # anything with `to(device)` that returns itself


def moved(part: Movable, name: str) -> Movable:
    """`part` on the device of that name; `auto` is CUDA where there is any.

    Raises:
        UserError: if there is no such device, or it cannot be used.
    """
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return part.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {device!r} cannot be used ({str(error).splitlines()[0]}): auto, cpu or cuda"
        ) from error
