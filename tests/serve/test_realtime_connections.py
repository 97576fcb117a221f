"""Who may connect to the Realtime interface, how long, and what is left of a client that leaves."""

import asyncio
import json
import socket
import time

import pytest
import websockets
from live_server import live_server, running
from realtime_server import GREEDY, b64, connected, shared_model, types
from talker import wave
from websockets.sync.client import connect

from lit_moss.serve.realtime_outbox import MAX_CHARACTERS, MAX_DELTAS, MAX_EVENTS, Outbox

KEY = "secret"


def events_until_closed(socket):
    events = []
    try:
        while True:
            events.append(json.loads(socket.recv(timeout=20)))
    except websockets.ConnectionClosed as closed:
        return events, closed.rcvd


def talk(socket, rows=40):
    """Begins a spoken response to a text."""
    assert json.loads(socket.recv(timeout=20))["type"] == "session.created"
    session = {"type": "realtime", "max_output_tokens": rows, "lit_moss": GREEDY}
    part = {"type": "input_text", "text": "Good morning"}
    item = {"type": "message", "role": "user", "content": [part]}
    for event in (
        {"type": "session.update", "session": session},
        {"type": "conversation.item.create", "item": item},
        {"type": "response.create"},
    ):
        socket.send(json.dumps(event))


def read_until(socket, name):
    events = []
    while not events or events[-1]["type"] != name:
        events.append(json.loads(socket.recv(timeout=20)))
    return events


@pytest.fixture(scope="module")
def server():
    with running(shared_model(), max_sessions=2) as server:
        yield server


@pytest.fixture(scope="module")
def locked():
    with running(shared_model(), api_key=KEY) as server:
        yield server


def test_keys_come_as_a_header_or_as_a_subprotocol(locked):
    with connect(locked.ws, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
        assert socket.subprotocol is None
        assert types([json.loads(socket.recv())]) == ["session.created"]
    browser = ["realtime", f"openai-insecure-api-key.{KEY}"]
    with connect(locked.ws, subprotocols=browser) as socket:
        assert socket.subprotocol == "realtime"
        assert types([json.loads(socket.recv())]) == ["session.created"]
    locked.wait_for_sessions(0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"additional_headers": {"Authorization": "Bearer wrong"}},
        {"additional_headers": {"Authorization": f"Basic {KEY}"}},
        {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"]},
    ],
)
def test_wrong_keys_are_refused(locked, options):
    with pytest.raises(websockets.InvalidStatus) as refused, connect(locked.ws, **options):
        pass
    assert refused.value.response.status_code == 401
    assert not locked.engine.sessions


def test_the_official_client_is_refused_with_a_wrong_key(locked):
    from openai import OpenAI

    client = OpenAI(base_url=locked.v1, api_key="wrong")
    with pytest.raises(websockets.InvalidStatus), client.realtime.connect(model="m"):
        pass


def test_pages_from_elsewhere_are_refused_where_there_is_no_key(server):
    with pytest.raises(websockets.InvalidStatus), connect(server.ws, origin="https://elsewhere.example"):
        pass
    with connect(server.ws, origin="http://localhost:7860") as socket:
        socket.recv()
    server.wait_for_sessions(0)


def test_other_names_of_the_server_are_refused_with_and_without_a_key():
    """A page of a name that resolves to this machine has the origin that its host has."""
    for key in (None, KEY):
        with running(shared_model(), key, hosts=("127.0.0.1", "localhost")) as server:
            headers = {"Authorization": f"Bearer {KEY}"}
            port = int(server.url.rpartition(":")[2])
            with (
                socket.create_connection(("127.0.0.1", port)) as sock,
                pytest.raises(websockets.InvalidStatus) as refused,
                connect(
                    f"ws://evil.example:{port}/v1/realtime", sock=sock, additional_headers=headers,
                    origin=f"http://evil.example:{port}",
                ),
            ):  # fmt: skip
                pass
            assert refused.value.response.status_code == 403
            assert b"evil.example" in refused.value.response.body
            with connect(server.ws, additional_headers=headers) as own:
                own.recv()


def test_refused_pages_are_answered_with_options_that_exist(server):
    with (
        pytest.raises(websockets.InvalidStatus) as refused,
        connect(server.ws, origin="https://other.example"),
    ):
        pass
    assert b"--api-key-file" in refused.value.response.body
    with pytest.raises(websockets.InvalidStatus), connect(server.ws, origin="null"):
        pass


@pytest.mark.slow
def test_a_response_that_outlasts_the_drain_is_cut_and_counted():
    with live_server(shared_model(), drain_sec=0.3) as live:
        with connect(live.ws) as socket:
            talk(socket, rows=1500)
            read_until(socket, "response.output_audio.delta")
            live.server.stop()
            _, closed = events_until_closed(socket)
            assert closed is None or closed.code in (1001, 1006, 1012)
        live.wait_for_sessions(0)
    assert live.server.was_cut


def test_a_full_server_says_so_and_closes(server):
    from openai import OpenAI

    third = OpenAI(base_url=server.v1, api_key="x").realtime.connect(model="m")
    with connected(server), connected(server), third as refused:
        assert refused.recv().error.code == "session_limit_reached"
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            refused.recv()
        assert closed.value.rcvd.code == 1008
    server.wait_for_sessions(0)
    with connected(server) as client:
        client.say("one")
        assert client.respond(max_output_tokens=3)


@pytest.mark.slow
def test_clients_that_leave_in_the_middle_free_their_place(server):
    for _ in range(3):
        with connect(server.ws) as socket:
            talk(socket, rows=1500)
            read_until(socket, "response.output_audio.delta")
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": b64(wave(0.3))}))
        server.wait_for_sessions(0)
    socket = connect(server.ws)
    talk(socket, rows=1500)
    read_until(socket, "response.output_audio.delta")
    socket.socket.close()  # without a goodbye
    server.wait_for_sessions(0)


@pytest.mark.slow
def test_a_client_that_does_not_read_holds_nobody(server):
    with connect(server.ws, max_queue=1, close_timeout=0.5) as stalled:
        talk(stalled, rows=1500)
        read_until(stalled, "response.output_audio.delta")
        with connected(server) as client:
            client.say("one")
            began = time.monotonic()
            assert client.respond(max_output_tokens=12)[-1]["response"]["status"] == "incomplete"
            assert time.monotonic() - began < 15
    server.wait_for_sessions(0)


@pytest.mark.slow
def test_idle_clients_and_long_sessions_are_ended():
    with running(shared_model(), idle_sec=0.5) as server:
        with connect(server.ws) as socket:
            began = time.monotonic()
            events, closed = events_until_closed(socket)
            assert 0.4 < time.monotonic() - began < 5
            assert events[-1]["error"]["code"] == "session_idle_timeout"
            assert closed.code == 1008
        server.wait_for_sessions(0)
    with running(shared_model(), session_sec=1.5) as server:
        with connect(server.ws) as socket:
            talk(socket, rows=1500)
            events, closed = events_until_closed(socket)
            assert types(events)[-2:] == ["response.done", "error"]  # a running response ends first
            assert events[-1]["error"]["code"] == "session_expired"
            assert closed.code == 1008
        server.wait_for_sessions(0)


@pytest.mark.slow
def test_a_drained_server_ends_responses_and_takes_no_clients():
    with running(shared_model()) as server:
        with connect(server.ws) as idle, connect(server.ws) as busy:
            talk(busy, rows=40)
            read_until(busy, "response.created")
            assert types([json.loads(idle.recv())]) == ["session.created"]
            server.server.stop()
            assert events_until_closed(idle)[1].code == 1001
            with connect(server.ws) as late:
                events, closed = events_until_closed(late)
            assert (events[-1]["error"]["code"], closed.code) == ("server_shutting_down", 1013)
            events, closed = events_until_closed(busy)
            assert events[-1]["type"] == "response.done"
            assert events[-1]["response"]["status"] == "incomplete"  # to its end, not cancelled
            assert closed.code == 1001
        server.wait_for_sessions(0)


# --- what waits to be sent ----------------------------------------------------------------------------------


def test_deltas_wait_for_room_and_other_events_do_not():
    async def main():
        outbox, sent, may_send = Outbox(), [], asyncio.Semaphore(0)

        async def send_text(text):
            await may_send.acquire()
            sent.append(json.loads(text)["n"])

        async def make():
            for n in range(MAX_DELTAS + 3):
                await outbox.room()
                outbox.send({"n": n}, "resp_1")

        sender, maker = asyncio.create_task(outbox.run(send_text)), asyncio.create_task(make())
        await asyncio.sleep(0.01)
        assert not maker.done()
        outbox.send({"n": "other"})
        may_send.release()
        await asyncio.sleep(0.01)
        outbox.drop("resp_1")
        await asyncio.wait_for(maker, 1)  # dropping makes room
        outbox.drop("resp_1")
        outbox.send({"n": "last"})
        for _ in range(10):
            may_send.release()
        await outbox.flushed(1)
        outbox.close()
        await asyncio.wait_for(sender, 1)
        return sent

    sent = asyncio.run(main())
    assert sent[:2] == [0, 1]  # the second was on its way when the others were dropped
    assert sent[2:] == ["other", "last"]


def test_what_waits_is_bounded_in_number_and_size():
    async def main():
        outbox = Outbox()
        for n in range(MAX_EVENTS):
            outbox.send({"n": n})
        assert not outbox.overflows
        outbox.send({"n": "one too many"})
        assert outbox.overflows
        outbox = Outbox()
        outbox.send({"tools": "x" * (MAX_CHARACTERS // 2)}, "resp_1")
        assert not outbox.overflows
        outbox.send({"tools": "x" * (MAX_CHARACTERS // 2)})
        assert outbox.overflows
        outbox.drop("resp_1")
        assert not outbox.overflows

    asyncio.run(main())
