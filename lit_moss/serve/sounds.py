"""Sound as bytes: uploads -> samples, samples -> the formats that clients ask for."""

import base64
import binascii
import io as streams
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from lit_moss.audio import io, rates
from lit_moss.errors import UserError

# Header and sample type of libsndfile for each format of a reply.
_CONTAINERS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"),
               "opus": ("OGG", "OPUS")}  # fmt: skip
# All channels are decoded together: a file that states 1024 of them would take 2 GB a block.
MOST_CHANNELS = 8


def from_base64(text: str) -> bytes:
    """The bytes.

    Raises:
        UserError: if it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"no base64 ({error}): expected sound in base64") from None


def read_upload(content: bytes, max_sec: float, rate_hz: int = rates.TOKENIZER_RATE_HZ) -> Tensor:
    """Samples of a sound file in memory: the first channel, float32 (T,) in [-1, 1].

    The file is written into the folder of temporary files for as long as it is read.

    Args:
        content: A file of any format that `lit_moss.audio.io` reads.
        max_sec: Longest that is taken.
        rate_hz: Rate of the result.

    Raises:
        UserError: if it is no sound file, is damaged, longer, or has more channels.
    """
    if not content:
        raise UserError("an empty sound file")
    with tempfile.TemporaryDirectory(prefix="lit_moss_upload_") as folder:
        path = Path(folder) / "sound"
        path.write_bytes(content)
        try:
            header = io.info(path)
            if header.duration_sec > max_sec:
                raise UserError(f"{header.duration_sec:.1f} s of sound: expected at most {max_sec:g} s")
            if header.channels > MOST_CHANNELS:
                raise UserError(f"{header.channels} channels: expected at most {MOST_CHANNELS}")
            return io.read(path, rate_hz)
        except io.UnreadableAudio as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise UserError(f"no usable sound file: {reason}") from None


def pcm16(samples_T: Tensor) -> bytes:
    """Samples in [-1, 1] -> little-endian 16-bit samples; what is beyond is clipped."""
    return (samples_T.clamp(-1, 1) * 32767).round().cpu().numpy().astype("<i2").tobytes()


def read_pcm16(text: str, max_bytes: int) -> Tensor:
    """Little-endian 16-bit samples in base64 -> float32 (T,) in [-1, 1).

    Args:
        text: What came.
        max_bytes: Most bytes of sound.

    Raises:
        UserError: if it is not base64, not whole samples, or longer.
    """
    if len(text) > 4 * -(-max_bytes // 3):
        raise UserError(f"more than {max_bytes} bytes of sound: send it in several parts")
    data = from_base64(text)
    if len(data) % 2:
        raise UserError(f"{len(data)} bytes of sound, expected whole samples of 2 bytes")
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768.0)


def sound_bytes(samples_T: Tensor, sound_format: str) -> bytes:
    """Samples at 24 kHz as a file of a format, or as bare samples (`pcm16`).

    No samples become a code's length of silence: FLAC and MP3 of none are no bytes at all, which clients
    cannot decode.
    """
    if not len(samples_T):
        samples_T = torch.zeros(rates.DECODER_SAMPLES_PER_CODE)
    content = pcm16(samples_T)
    if sound_format == "pcm16":
        return content
    container, subtype = _CONTAINERS[sound_format]
    file = streams.BytesIO()
    samples = np.frombuffer(content, "<i2").astype(np.int16)
    soundfile.write(file, samples, rates.DECODER_RATE_HZ, format=container, subtype=subtype)
    return file.getvalue()


class Base64Chunks:
    """Bytes -> base64 texts that can be joined: all but the last hold a multiple of 6 bytes.

    Padding inside the joined text would end it there, and 16-bit samples must not be cut in two.
    """

    def __init__(self) -> None:
        self._left = b""

    def push(self, content: bytes) -> str:
        """Next bytes; the text of whole groups, "" if there is none."""
        content = self._left + content
        whole = len(content) // 6 * 6
        self._left = content[whole:]
        return base64.b64encode(content[:whole]).decode("ascii")

    def flush(self) -> str:
        """The text of what is left."""
        left, self._left = self._left, b""
        return base64.b64encode(left).decode("ascii")
