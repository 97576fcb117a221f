"""Computing time of streams, piece by piece."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor


class _Stream(Protocol):
    def push(self, piece: Any, /) -> Tensor: ...

    def flush(self) -> Tensor: ...


def timed_outputs(stream: _Stream, pieces: Iterable[Any]) -> Iterator[tuple[Tensor, float]]:
    """The output of each `push`, then that of `flush`, with the seconds that the call took.

    On a GPU the time covers the computation only where the stream returns tensors on the CPU, as a codec's
    does, or where the caller waits for the device.
    """
    for piece in pieces:
        start = time.perf_counter()
        output = stream.push(piece)
        yield output, time.perf_counter() - start
    start = time.perf_counter()
    output = stream.flush()
    yield output, time.perf_counter() - start
