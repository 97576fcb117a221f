"""Products in full float32 within a block, whatever the program allows elsewhere.

TF32 (which cuDNN's convolutions use unless forbidden), `torch.set_float32_matmul_precision("high")`, bfloat16
products of oneDNN and autocast keep 8 to 11 bits of each factor. Deciding between two codes takes all 24.
"""

import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.amp.autocast_mode import is_autocast_available

from lit_moss.errors import UserError

# The flags are per process, not per thread: of overlapping users the first saves, the last restores.
_lock = threading.Lock()
_users = 0
_saved: list[tuple[Any, str, Any]] = []


def _flags() -> list[Any]:
    """One object for each backend and kind of product, with an attribute `fp32_precision`."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    return [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


class _Matmul:
    """torch's older setting, as an attribute."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


def _set_full() -> None:
    # All are read before any is written: the older settings write the newer ones.
    wanted: list[tuple[Any, str, Any]] = [
        (_Matmul(), "precision", "highest"),
        (torch.backends.cudnn, "allow_tf32", False),
        *((flag, "fp32_precision", "ieee") for flag in _flags()),
    ]
    for owner, name, _ in wanted:
        # torch refuses to read an older setting that contradicts a newer one, which then has priority.
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
            # "none" follows the backend's general setting and reads as that: an inherited setting stays one.
            owner.fp32_precision = "none"
            if owner.fp32_precision == value:
                continue
        setattr(owner, name, value)
    _saved.clear()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products in float32, and no autocast; restores the settings afterwards.

    Args:
        device: Where the tensors are: autocast is switched off for it, and for the CPU.
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
    """Refuses to train what computes with waves and mels in the weights' type, where that is a small one.

    With `bf16-true` the waves themselves would have 8 bits, which the Fourier transform does not take; the
    times of flow matching would, and a codebook's moving averages, which would stop.

    Args:
        precision: Lightning's name of it.
        whole: Types of weights and batches that will do.

    Raises:
        UserError: if it is another one.
    """
    if precision.endswith("-true") and precision not in whole:
        raise UserError(
            f"trainer.precision is {precision}, and waves, mels and codebooks are held in float32: expected "
            "32-true, or bf16-mixed, which multiplies in bfloat16"
        )
