"""16-bit samples as they travel: mono, little-endian, in base64."""

import base64
import binascii

import numpy as np
import torch
from torch import Tensor

from lit_moss.errors import UserError


def encode_pcm16(samples_T: Tensor) -> str:
    """float32 (T,) in [-1, 1], clipped where it is louder -> base64."""
    scaled = (samples_T.clamp(-1.0, 1.0) * 32767.0).round().cpu().numpy()
    return base64.b64encode(scaled.astype("<i2").tobytes()).decode("ascii")


def decode_pcm16(text: str, max_bytes: int) -> Tensor:
    """Base64 -> float32 (T,) in [-1, 1).

    Args:
        text: What came.
        max_bytes: Most bytes of sound.

    Raises:
        UserError: if it is not base64, not whole samples, or longer.
    """
    if len(text) > 4 * -(-max_bytes // 3):
        raise UserError(f"more than {max_bytes} bytes of sound: send it in several parts")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("the sound is not base64") from error
    if len(data) % 2:
        raise UserError(f"{len(data)} bytes of sound, expected whole samples of 2 bytes")
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768.0)
