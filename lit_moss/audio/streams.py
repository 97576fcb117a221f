"""The interface of all streams: push pieces of the input, get the part of the output that is known.

    stream.push(piece) -> the output that is now known         any number of times; pieces of any length
    stream.flush()     -> the remaining output                 once, after the last piece

The concatenated outputs of all calls are as long as the output for the whole input, wherever the input was
cut. (Each class states how close the values are.) An error about a piece, for example a ValueError about
non-finite samples, leaves the stream unchanged. After `flush` the stream is closed.

| stream | pieces in | pieces out |
|---|---|---|
| `audio.features.Resampler` | samples (..., T) | samples (..., n) at another rate |
| `codec.tokenizer_stream.TokenizerStream` | samples (T,) at 16 kHz | codes, int64 (n,) |
| `codec.flow_stream.FlowStream` | codes, int64 (n,) | mel (1, 80, t) |
| `codec.vocoder.HiFTStream`, `GriffinLimStream` | mel (1, 80, t) | samples (1, l) at 24 kHz |
| `codec.trained_vocoder.TrainedVocoderStream` | mel (1, 80, t) | samples (1, l) at 24 kHz |
| `codec.codec.Player` | codes, int64 (n,) | samples, float32 (l,) at 24 kHz |
"""

from collections.abc import Iterable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Piece = TypeVar("Piece", contravariant=True)
Output = TypeVar("Output", covariant=True)
Input = TypeVar("Input")


class Stream(Protocol[Piece, Output]):
    """A stream for one utterance, see the module docstring."""

    def push(self, piece: Piece, /) -> Output:
        """Takes the next piece; returns the part of the output that is now known, which may be empty.

        Raises:
            RuntimeError: after `flush`.
        """
        ...

    def flush(self) -> Output:
        """Ends the input; returns the remaining output.

        Raises:
            RuntimeError: if it was already called.
        """
        ...


class ClosedByFlush:
    """Base class of streams that raise an error for every call after `flush`."""

    _closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this stream was flushed: make a new one")

    def _close(self) -> None:
        self._check_open()
        self._closed = True


def run_stream(stream: Stream[Input, Tensor], pieces: Iterable[Input], dim: int = -1) -> Tensor:
    """Pushes all pieces and flushes; returns the outputs concatenated along `dim`."""
    return torch.cat([*(stream.push(piece) for piece in pieces), stream.flush()], dim=dim)
