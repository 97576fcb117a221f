"""Where the padding before a turn was as long as the longest turn, turn detection heard nobody: every append
was refused, and the sound that was held grew until the session ended."""

import asyncio

import numpy as np
import pytest
import torch
from realtime_server import shared_model

from lit_moss.audio import rates
from lit_moss.serve.engine import Engine
from lit_moss.serve.realtime_input import InputBuffer, SpeechStarted
from lit_moss.serve.realtime_session import ServerVad
from lit_moss.serve.settings import Limits

RATE_HZ = rates.DECODER_RATE_HZ


class Loudness:
    """Voice activity of tones: loud frames are speech."""

    def stream(self, window_frames):
        return _Frames()


class _Frames:
    def __init__(self):
        self.left = np.zeros(0, np.float32)

    def push(self, samples):
        self.left = np.concatenate([self.left, samples])
        whole = len(self.left) // 512 * 512
        frames, self.left = self.left[:whole].reshape(-1, 512), self.left[whole:]
        return (np.abs(frames).max(axis=1) > 0.05).astype(np.float32)

    def flush(self):
        return np.zeros(0, np.float32)


async def heard(engine, wave_T, padding_ms, piece):
    session = engine.open_session()
    try:
        buffer, found = InputBuffer(session, Loudness), []
        await buffer.set_detection(ServerVad(prefix_padding_ms=padding_ms, silence_duration_ms=200))
        for piece_T in wave_T.split(piece):
            found += [one async for one in buffer.append(piece_T)]
        assert len(buffer._held_T) <= 6 * RATE_HZ
        return found
    finally:
        session.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most_sec", "padding_ms", "piece"),
    [(1.0, 5000, RATE_HZ), (1.0, 5000, 2400), (0.4, 0, RATE_HZ), (120.0, 5000, RATE_HZ), (1.0, 300, 1000)],
)
def test_speech_is_heard_whatever_the_padding(most_sec, padding_ms, piece):
    quiet_T = torch.zeros(6 * RATE_HZ)
    tone_T = 0.3 * torch.sin(torch.arange(2 * RATE_HZ) * 0.1)
    engine = Engine(shared_model(), Limits(max_turn_sec=most_sec))
    try:
        found = asyncio.run(heard(engine, torch.cat([quiet_T, tone_T, quiet_T]), padding_ms, piece))
    finally:
        engine.close()
    starts, stops = found[::2], found[1::2]
    assert all(isinstance(one, SpeechStarted) for one in starts)
    assert [one.item_id for one in starts] == [one.item_id for one in stops]
    turns_sec = [one.turn.seconds for one in stops]
    assert all(0 < turn <= most_sec for turn in turns_sec)
    # The turns follow one another without a gap, from before the tone to after it.
    assert [one.ms for one in starts[1:]] == [one.ms for one in stops[:-1]]
    assert starts[0].ms <= 6000
    assert 8000 <= stops[-1].ms <= 8300
    assert sum(turns_sec) == pytest.approx((stops[-1].ms - starts[0].ms) / 1000, abs=0.2)
