"""Turns of real speech, found by silero-vad in the sound as it comes."""

import base64

import numpy as np
import pytest
import torch
from live_server import running
from realtime_server import b64, connected, shared_model, types

from lit_moss.audio import io
from lit_moss.corpora.manifest import read_manifest
from lit_moss.serve.turn_detection import TurnDetection, TurnDetector, load_silero

RATE_HZ = 24_000
RULE = TurnDetection()


def trimmed(wave_T):
    """At most 3 s of it, without the silence before."""
    loud = (wave_T.abs() > 0.05).nonzero()
    return wave_T[int(loud[0]) : int(loud[-1]) + 1][: 3 * RATE_HZ]


@pytest.fixture(scope="module")
def talk(corpus):
    """1 s of faint noise, speech, 1.5 s, speech, 1.5 s; and where the speech is."""
    a_T, b_T = (trimmed(io.read(u.audio, RATE_HZ)) for u in read_manifest(corpus / "train.jsonl")[:2])
    noise = torch.Generator().manual_seed(0)
    pause_T = 1e-4 * torch.randn(3 * RATE_HZ // 2, generator=noise)
    pieces = [pause_T[:RATE_HZ], a_T, pause_T, b_T, pause_T]
    starts = np.cumsum([0, *map(len, pieces)])
    return torch.cat(pieces), [(starts[1], starts[2]), (starts[3], starts[4])]


def borders(wave_T, piece, options=RULE, first=0):
    detector = TurnDetector(load_silero(), options, first)
    return [b for piece_T in wave_T.split(piece) for b in detector.push(piece_T)]


@pytest.mark.slow
def test_turns_are_where_the_speech_is_however_the_sound_is_cut(talk):
    wave_T, speech = talk
    found = borders(wave_T, 2400)
    assert found == borders(wave_T, 997) == borders(wave_T, len(wave_T))
    kinds = [b.kind for b in found]
    assert kinds[:1] == ["began"]
    assert kinds == ["began", "ended"] * (len(kinds) // 2)
    assert abs(found[0].sample - speech[0][0]) < 0.3 * RATE_HZ
    last = found[-1].sample - 0.5 * RATE_HZ  # with 500 ms of silence
    assert abs(last - speech[1][1]) < 0.3 * RATE_HZ
    shifted = borders(wave_T, 2400, first=5000)
    assert [b.sample - 5000 for b in shifted] == [b.sample for b in found]


def test_borders_are_those_of_the_packages_own_iterator(talk):
    from silero_vad import VADIterator, load_silero_vad

    from lit_moss.audio.features import resample

    wave_T, _ = talk
    wave16_T = resample(wave_T, RATE_HZ, 16_000)
    iterator = VADIterator(load_silero_vad(onnx=True), min_silence_duration_ms=500, speech_pad_ms=0)
    theirs = [iterator(piece_T) for piece_T in wave16_T.split(512) if len(piece_T) == 512]
    theirs = [found for found in theirs if found]
    # Its silence is counted from the end of the first quiet frame, ours from its beginning.
    ours = borders(wave_T, 2400, TurnDetection(silence_ms=500 + 32))
    began = [b.sample for b in ours if b.kind == "began"]
    assert began == [3 * f["start"] // 2 for f in theirs if "start" in f]
    assert len([b for b in ours if b.kind == "ended"]) == len([f for f in theirs if "end" in f])


def test_quiet_sound_and_hum_are_no_speech():
    t = torch.arange(2 * RATE_HZ) / RATE_HZ
    for wave_T in (torch.zeros(2 * RATE_HZ), 0.05 * torch.sin(2 * torch.pi * 50 * t)):
        assert borders(wave_T, 2400) == []


# --- in a session -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    with running(shared_model(), max_turn_sec=20) as server:
        yield server


def vad(**changes):
    return {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 700} | changes}}


def append(client, samples_T, piece=2400):
    for piece_T in samples_T.split(piece):
        client.send(type="input_audio_buffer.append", audio=b64(piece_T))


@pytest.mark.slow
@pytest.mark.parametrize("piece", [2400, 15 * RATE_HZ])
def test_speech_is_committed_and_answered(server, talk, piece):
    wave_T, speech = talk
    with connected(server, audio=vad(), max_output_tokens=12) as client:
        append(client, wave_T[: speech[1][0]], piece)
        events = client.until("response.done")
        names = [n for n in types(events) if not n.startswith(("response.", "conversation.item"))]
        assert names == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
        ]
        started, stopped, committed = (e for e in events if e["type"].startswith("input_audio_buffer"))
        assert started["item_id"] == stopped["item_id"] == committed["item_id"]
        assert types(events)[3:6] == ["conversation.item.added", "conversation.item.done", "response.created"]
        # With 300 ms of padding before, and 700 ms of silence after.
        assert abs(started["audio_start_ms"] - (1000 - 300)) < 200
        assert abs(stopped["audio_end_ms"] - (1000 * speech[0][1] // RATE_HZ + 700)) < 300
        assert events[-1]["response"]["status"] == "incomplete"

        # The turn is the sound between the two.
        begin, end = (t * RATE_HZ // 1000 for t in (started["audio_start_ms"], stopped["audio_end_ms"]))
        quantised = torch.from_numpy(np.frombuffer(base64.b64decode(b64(wave_T[begin:end])), "<i2") / 32768.0)
        codes = server.engine.encode(quantised.float(), RATE_HZ).result()
        session = server.engine.sessions[0]
        assert session.conversation.messages[0].codes(session.conversation.format) == codes


@pytest.mark.slow
def test_speech_interrupts_a_response(server, talk):
    wave_T, speech = talk
    with connected(server, audio=vad(), max_output_tokens=1500) as client:
        append(client, wave_T[: speech[1][0] - RATE_HZ // 4])
        client.until("response.output_audio.delta")
        append(client, wave_T[speech[1][0] - RATE_HZ // 4 :])
        events = client.until("response.done")
        assert "input_audio_buffer.speech_started" in types(events)
        started = types(events).index("input_audio_buffer.speech_started")
        assert not [n for n in types(events)[started:] if n.endswith(".delta")]
        response = events[-1]["response"]
        assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        again = client.until("response.output_audio.delta")  # to the second turn
        assert "response.created" in types(again)
        client.send(type="response.cancel")
        client.until("response.done")


@pytest.mark.slow
def test_detection_without_responses_and_turned_off(server, talk):
    wave_T, speech = talk
    first_T = wave_T[: speech[1][0]]
    with connected(server, audio=vad(create_response=False)) as client:
        append(client, first_T)
        events = client.until("input_audio_buffer.committed")
        # A commit after the detector's finds nothing, and harms nothing.
        error = client.error(type="input_audio_buffer.commit")
        assert error["code"] == "input_audio_buffer_commit_empty"
        client.update(audio={"input": {"turn_detection": None}})
        append(client, first_T)
        client.send(type="input_audio_buffer.commit")
        events = client.until("conversation.item.done")
        assert not [n for n in types(events) if n.startswith(("response", "input_audio_buffer.speech"))]


def test_a_turn_without_end_is_cut(talk):
    wave_T, speech = talk
    limits = {"max_turn_sec": 1.5}
    with (
        running(shared_model(), **limits) as server,
        connected(server, audio=vad(create_response=False)) as client,
    ):
        append(client, wave_T[: speech[1][0]])
        events = client.until("input_audio_buffer.committed")
        events += client.until("input_audio_buffer.committed")
        stops = [e for e in events if e["type"].endswith("speech_stopped")]
        starts = [e for e in events if e["type"].endswith("speech_started")]
        assert 0 < stops[0]["audio_end_ms"] - starts[0]["audio_start_ms"] <= 1500
        assert starts[1]["audio_start_ms"] == stops[0]["audio_end_ms"]
