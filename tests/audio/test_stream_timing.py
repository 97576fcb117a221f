"""Times of a stream, piece by piece."""

import time

import torch

from lit_moss.audio.stream_timing import timed_outputs


class Slow:
    """Returns what it is given, one push late, after 10 ms."""

    def __init__(self):
        self.last = torch.empty(0)

    def push(self, piece):
        time.sleep(0.01)
        self.last, out = piece, self.last
        return out

    def flush(self):
        return self.last


def test_every_output_comes_with_its_own_time():
    outputs, seconds = zip(*timed_outputs(Slow(), torch.arange(3).split(1)), strict=True)
    assert torch.cat(outputs).tolist() == [0, 1, 2]
    assert all(0.01 <= s < 1 for s in seconds[:3])
    assert seconds[3] < 0.01
