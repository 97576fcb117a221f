"""Reading and writing sound files by soundfile: wav, flac, ogg, mp3, opus.

Any rate and channel count, whole files and parts of them.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from lit_moss.audio.features import resample
from lit_moss.records import printable

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_UNKNOWN_FRAMES = 2**62  # libsndfile says 2^63 - 1 for a stream whose header does not tell its length


class UnreadableAudio(Exception):  # noqa: N818
    """A sound file that cannot be used; the message names the file and says why."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    Args:
        frames: Samples per channel.
        rate_hz: Sampling rate.
        channels: Number of channels.
    """

    frames: int
    rate_hz: int
    channels: int

    @property
    def duration_sec(self) -> float:
        """Length in seconds."""
        return self.frames / self.rate_hz


def info(path: str | Path) -> AudioInfo:
    """Length, rate and channels, without decoding.

    Raises:
        UnreadableAudio: if the file is missing, empty, no sound file, or does not tell its length.
    """
    try:
        header = soundfile.info(_native(path))
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise UnreadableAudio(f"{path}: {_why(path, error)}") from error
    _check_length_known(path, header.frames)
    if header.frames == 0:
        raise UnreadableAudio(f"{path}: no samples")
    return AudioInfo(header.frames, header.samplerate, header.channels)


def read(
    path: str | Path, rate_hz: int, offset_sec: float = 0.0, duration_sec: float | None = None
) -> Tensor:
    """Samples of the first channel, resampled: float32 (T,) in [-1, 1].

    The first channel alone, as the released tokenizer takes it. `duration_sec` None reads to the end.

    Raises:
        UnreadableAudio: if the file is missing, empty, damaged, ends before `offset_sec`, or has samples that
            are not finite.
    """
    try:
        with soundfile.SoundFile(_native(path)) as file:
            start = round(offset_sec * file.samplerate)
            count = -1 if duration_sec is None else round(duration_sec * file.samplerate)
            if count < 0:
                _check_length_known(path, file.frames)
            if start:
                file.seek(min(start, file.frames))
            samples = file.read(count, dtype="float32", always_2d=True)[:, 0]
            from_hz = file.samplerate
            # A damaged stream ends early without an error; a header tells how long it should have been.
            expected = max(0, file.frames - start) if count < 0 else min(count, max(0, file.frames - start))
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise UnreadableAudio(f"{path}: {_why(path, error)}") from error
    if not len(samples):
        raise UnreadableAudio(f"{path}: no samples at {offset_sec:.3f} s")
    if len(samples) < expected:
        raise UnreadableAudio(
            f"{path}: {len(samples)} samples decoded of {expected} that the header promises"
        )
    if not np.isfinite(samples).all():
        raise UnreadableAudio(f"{path}: samples that are not finite")
    return resample(torch.from_numpy(np.ascontiguousarray(samples)), from_hz, rate_hz)


def write(path: str | Path, wave: Tensor, rate_hz: int) -> None:
    """Writes (T,) samples in [-1, 1]; the format follows the extension, 16 bits where it knows bits."""
    # soundfile knows no format of this name: Opus travels in Ogg.
    container, subtype = ("OGG", "OPUS") if Path(path).suffix.lower() == ".opus" else (None, None)
    soundfile.write(_native(path), wave.detach().cpu().numpy(), rate_hz, format=container, subtype=subtype)


def _native(path: str | Path) -> Any:
    """The name as bytes, which soundfile takes as it is: names need not be UTF-8."""
    return os.fsencode(path)


def _check_length_known(path: str | Path, frames: int) -> None:
    if frames >= _UNKNOWN_FRAMES:
        raise UnreadableAudio(f"{path}: its header does not tell its length, write it anew")


def _why(path: str | Path, error: Exception) -> str:
    path = Path(path)
    if not path.exists():
        return "no such file"
    if path.is_file() and path.stat().st_size == 0:
        return "empty file"
    return f"no readable sound ({str(error).split(': ', 1)[-1].strip()})"
