"""Computing time of streams per piece."""

import time
from collections.abc import Iterable, Iterator

from lit_moss.audio.streams import Input, Output, Stream


def timed_outputs(stream: Stream[Input, Output], pieces: Iterable[Input]) -> Iterator[tuple[Output, float]]:
    """Yields the output of each `push`, then that of `flush`, with the duration of the call in seconds.

    On a GPU the time includes the computation only if the stream returns tensors on the CPU, as a codec's
    does, or if the caller waits for the device.
    """
    for piece in pieces:
        start = time.perf_counter()
        output = stream.push(piece)
        yield output, time.perf_counter() - start
    start = time.perf_counter()
    output = stream.flush()
    yield output, time.perf_counter() - start
