"""Audio as bytes: uploads to samples, and samples to the formats that clients request."""

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

# Container and sample type of libsndfile for each format of a reply.
_CONTAINERS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"),
               "opus": ("OGG", "OPUS")}  # fmt: skip
# All channels are decoded together: a file that states 1024 channels would take 2 GB per block.
MOST_CHANNELS = 8


def from_base64(text: str) -> bytes:
    """Decodes base64.

    Raises:
        UserError: if the text is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"no base64 ({error}): expected sound in base64") from None


def read_upload(content: bytes, max_sec: float, rate_hz: int = rates.TOKENIZER_RATE_HZ) -> Tensor:
    """Samples of a sound file in memory: the first channel, float32 (T,) in [-1, 1].

    The file is stored in the temporary folder while it is read.

    Args:
        content: Content of a file in any format that `lit_moss.audio.io` reads.
        max_sec: Maximum length in seconds.
        rate_hz: Sample rate of the result in Hz.

    Raises:
        UserError: if it is not a sound file, is damaged, too long, or has too many channels.
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
    """Samples in [-1, 1] as little-endian 16-bit samples; values outside are clipped."""
    return (samples_T.clamp(-1, 1) * 32767).round().cpu().numpy().astype("<i2").tobytes()


def read_pcm16(text: str, max_bytes: int) -> Tensor:
    """Decodes little-endian 16-bit samples in base64 to float32 (T,) in [-1, 1).

    Args:
        text: Samples in base64.
        max_bytes: Maximum size of the samples in bytes.

    Raises:
        UserError: if it is not base64, contains incomplete samples, or is too long.
    """
    if len(text) > 4 * -(-max_bytes // 3):
        raise UserError(f"more than {max_bytes} bytes of sound: send it in several parts")
    data = from_base64(text)
    if len(data) % 2:
        raise UserError(f"{len(data)} bytes of sound, expected whole samples of 2 bytes")
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768.0)


def sound_bytes(samples_T: Tensor, sound_format: str) -> bytes:
    """Samples at 24 kHz as a file of a given format, or as raw samples (`pcm16`).

    An empty wave is replaced by one code's length of silence: empty FLAC and MP3 files have no bytes, and
    clients cannot decode them.
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
    """Encodes bytes as base64 texts that can be concatenated: all but the last encode a multiple of 6 bytes.

    Padding within the concatenated text would end it, and 16-bit samples must not be divided.
    """

    def __init__(self) -> None:
        self._left = b""

    def push(self, content: bytes) -> str:
        """Adds bytes; returns the text of complete groups, "" if there is none."""
        content = self._left + content
        whole = len(content) // 6 * 6
        self._left = content[whole:]
        return base64.b64encode(content[:whole]).decode("ascii")

    def flush(self) -> str:
        """Returns the text of the remaining bytes."""
        left, self._left = self._left, b""
        return base64.b64encode(left).decode("ascii")
