"""Reads several streams in one file, one after another (`cat a.ogg b.ogg`), as one recording.

The Ogg format allows this and players support it, but libsndfile reads only the first stream.
"""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from lit_moss.audio.containers import PartOfFile


class ChainedFile:
    """The streams of a file, with the part of `soundfile.SoundFile`'s interface that is used here.

    Args:
        path: The file.
        streams: Offset and length in bytes of each stream.

    Raises:
        soundfile.SoundFileError: if a stream cannot be read, or has another sample rate or number of
            channels.
    """

    def __init__(self, path: str | Path, streams: tuple[tuple[int, int], ...]) -> None:
        self._parts: list[soundfile.SoundFile] = []
        self._files: list[PartOfFile] = []
        self._next = 0  # frame
        try:
            for begin, length in streams:
                self._files.append(PartOfFile(path, begin, length))
                source: Any = self._files[-1]
                self._parts.append(soundfile.SoundFile(source))
        except soundfile.SoundFileError:
            self.close()
            raise
        first = self._parts[0]
        self.samplerate, self.channels, self.format = first.samplerate, first.channels, first.format
        kinds = {(part.samplerate, part.channels) for part in self._parts}
        if len(kinds) > 1:
            self.close()
            raise soundfile.SoundFileError(
                f"several recordings one after another, of different rates or channels {sorted(kinds)}; "
                "split or re-encode it"
            )
        self._ends = np.cumsum([part.frames for part in self._parts]).tolist()
        self.frames = self._ends[-1]

    def seekable(self) -> bool:
        """Always True."""
        return True

    def seek(self, frame: int) -> int:
        """Sets the frame to read next, and returns it."""
        self._next = frame
        return frame

    def read(self, frames: int, dtype: Any = "float32", always_2d: bool = True) -> np.ndarray:
        """Samples (n, channels); fewer than `frames` at the end."""
        pieces, left = [], frames
        for part, end in zip(self._parts, self._ends, strict=True):
            if left and self._next < end:
                part.seek(self._next - (end - part.frames))
                block = part.read(min(left, end - self._next), dtype=dtype, always_2d=True)
                pieces.append(block)
                self._next, left = self._next + len(block), left - len(block)
                if self._next < end:  # damaged: the stream ends too early
                    break
        return np.concatenate(pieces) if pieces else np.zeros((0, self.channels), dtype)

    def close(self) -> None:
        """Closes all streams."""
        for file in (*self._parts, *self._files):
            file.close()

    def __enter__(self) -> "ChainedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
