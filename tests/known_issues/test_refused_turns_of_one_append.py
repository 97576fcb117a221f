"""With turn detection a turn that was refused ended the whole append: the sound after it, seconds or minutes
of a recording, was neither heard nor counted, and later times of speech were off by as much."""

import threading

import pytest
import torch
from live_server import running
from realtime_server import b64, connected, shared_model, types

from lit_moss.audio import io
from lit_moss.corpora.manifest import read_manifest
from lit_moss.serve import realtime_items

pytestmark = pytest.mark.slow
RATE_HZ = 24_000
VAD = {"input": {"turn_detection": {"type": "server_vad", "create_response": False}}}


@pytest.fixture(scope="module")
def server():
    with running(shared_model(), max_turn_sec=20) as server:
        yield server


@pytest.fixture(scope="module")
def phrase(corpus):
    """Half a second of speech and a pause."""
    wave_T = io.read(read_manifest(corpus / "train.jsonl")[0].audio, RATE_HZ)
    first = int((wave_T.abs() > 0.05).nonzero()[0])
    return torch.cat([wave_T[first : first + RATE_HZ // 2], torch.zeros(RATE_HZ)])


def stops(events):
    return [e["audio_end_ms"] for e in events if e["type"] == "input_audio_buffer.speech_stopped"]


def test_more_turns_than_can_be_encoded_at_once_wait(server, phrase):
    turns, gate = realtime_items.MAX_ENCODING + 3, threading.Event()
    with connected(server, audio=VAD) as client:
        server.engine.sounds.submit(gate, lambda: gate.wait(60) and None)  # no turn gets its codes
        client.send(type="input_audio_buffer.append", audio=b64(phrase.repeat(turns)))
        events = []
        while types(events).count("input_audio_buffer.speech_stopped") <= realtime_items.MAX_ENCODING:
            events += client.until("input_audio_buffer.speech_stopped")
        gate.set()
        while types(events).count("input_audio_buffer.committed") < turns:
            events += client.until("input_audio_buffer.committed")
        assert "error" not in types(events)
        length_ms = 1000 * len(phrase) // RATE_HZ
        assert len(stops(events)) == turns
        for number, stop_ms in enumerate(stops(events)):
            assert abs(stop_ms - number * length_ms - 1000) < 300


def test_a_turn_without_room_is_refused_alone(server, phrase, monkeypatch):
    monkeypatch.setattr(realtime_items, "MAX_ITEMS", 2)
    with connected(server, audio=VAD) as client:
        client.send(type="input_audio_buffer.append", event_id="all", audio=b64(phrase.repeat(4)))
        events = []
        while types(events).count("error") < 2:
            events += client.until("input_audio_buffer.committed", "error")
        assert types(events).count("input_audio_buffer.committed") == 2
        assert [round(stop_ms / 1500) for stop_ms in stops(events)] == [1, 2, 3, 4]
        errors = [e["error"] for e in events if e["type"] == "error"]
        assert {(error["code"], error["event_id"]) for error in errors} == {("conversation_full", "all")}
        # What comes later counts from the end of all of it.
        client.send(type="input_audio_buffer.append", audio=b64(phrase))
        events = client.until("error")
        assert round(stops(events)[0] / 1500) == 5
