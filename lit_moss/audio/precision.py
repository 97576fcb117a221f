"""Computes products in full float32 within a block, whatever the program allows elsewhere.

TF32 (which cuDNN's convolutions use by default), `torch.set_float32_matmul_precision("high")`, oneDNN's
bfloat16 products and autocast keep 8 to 11 bits of each factor. Deciding between two codes needs all 24.
"""

import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.amp.autocast_mode import is_autocast_available

from lit_moss.errors import UserError

# The flags are per process, not per thread: with overlapping users, the first saves and the last restores
# them.
_lock = threading.Lock()
_users = 0
_saved: list[tuple[Any, str, Any]] = []


def _flags() -> list[Any]:
    """One object per backend and kind of product, with an attribute `fp32_precision`."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    return [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


class _Matmul:
    """torch's older setting as an attribute."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


def _set_full() -> None:
    # All are read before any is written, because the older settings change the newer ones.
    wanted: list[tuple[Any, str, Any]] = [
        (_Matmul(), "precision", "highest"),
        (torch.backends.cudnn, "allow_tf32", False),
        *((flag, "fp32_precision", "ieee") for flag in _flags()),
    ]
    for owner, name, _ in wanted:
        # torch refuses to read an older setting that contradicts a newer one, which then takes precedence.
        try:
            _saved.append((owner, name, getattr(owner, name)))
        except RuntimeError:
            continue
    readable = [(owner, name) for owner, name, _ in _saved]
    for owner, name, full in wanted:
        if (owner, name) in readable:
            setattr(owner, name, full)


def _restore() -> None:
    for owner, name, value in _saved:
        if name == "fp32_precision":
            # "none" inherits the backend's general setting and is read as that, so inherited settings stay
            # inherited.
            owner.fp32_precision = "none"
            if owner.fp32_precision == value:
                continue
        setattr(owner, name, value)
    _saved.clear()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Computes float32 products in float32 and without autocast; restores the settings afterwards.

    Args:
        device: Device of the tensors; autocast is disabled for it and for the CPU.
    """
    global _users
    with ExitStack() as stack:
        for kind in {device.type, "cpu"}:
            if is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        with _lock:
            if _users == 0:
                _set_full()
            _users += 1
        try:
            yield
        finally:
            with _lock:
                _users -= 1
                if _users == 0:
                    _restore()


def check_weights(precision: str, whole: Collection[str] = ("32-true", "64-true")) -> None:
    """Refuses precisions in which weights, and therefore waves and mels, would have a small data type.

    With `bf16-true` the waves themselves would have 8 bits, which the Fourier transform does not support; so
    would the times of flow matching and the moving averages of a codebook, which would stop changing.

    Args:
        precision: Lightning's name of the precision.
        whole: Accepted precisions.

    Raises:
        UserError: if the precision is not accepted.
    """
    if precision.endswith("-true") and precision not in whole:
        raise UserError(
            f"trainer.precision is {precision}, and waves, mels and codebooks are held in float32: expected "
            "32-true, or bf16-mixed, which multiplies in bfloat16"
        )
