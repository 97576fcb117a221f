"""The server's process: its end by signals, its line, its options."""

import json
import os
import signal
import socket
import threading
import time

import httpx
import pytest
from launch import start
from live_server import live_server
from talker import model_folder

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.server import bind

SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "pcm16"}}


def long_question(model="tiny", most=150):
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": True,
            "max_tokens": most, "seed": 1, **SPOKEN}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("process") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return SpeechModel.open(str(folder), device="cpu")


@pytest.mark.nightly
def test_draining_server_finishes_its_replies_and_takes_no_new_ones(model):
    with live_server(model, drain_sec=30.0) as live:
        with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=long_question()) as stream:
            lines = stream.iter_lines()
            first = [next(lines) for _ in range(3)]
            live.server.stop()
            health = httpx.get(f"{live.url}/health")
            assert (health.status_code, health.json()["status"]) == (503, "draining")
            answer = httpx.post(f"{live.url}/v1/chat/completions", json=long_question())
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
            assert "retry-after" in answer.headers
            events = [line for line in [*first, *lines] if line]
        assert events[-1] == "data: [DONE]"
    assert not live.server.was_cut


@pytest.mark.slow
def test_replies_that_take_longer_than_the_drain_are_cut(model):
    question = long_question(most=390)
    with (
        live_server(model, drain_sec=0.2) as live,
        httpx.stream("POST", f"{live.url}/v1/chat/completions", json=question) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        live.server.stop()
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert live.server.was_cut
    assert live.sessions == []


def test_taken_port_is_the_users_mistake(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--model", str(folder), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1  # noqa: PT018
    assert str(port) in error


@pytest.mark.parametrize(("words", "named"), [
    (["--model", "no-such-folder"], "no-such-folder"),
    (["--host", "0.0.0.0"], "--insecure"),
    (["--host", "no.such.host.invalid"], "--host"),
    (["--port", "99999"], "99999"),
    (["--max-sessions", "0"], "max_sessions"),
    (["--drain-sec", "-1"], "--drain-sec"),
    (["--voice", "me"], "NAME=FILE"),
    (["--voice", "me=no-such.wav"], "no-such.wav"),
    (["--api-key-file", "no-such-key"], "no-such-key"),
])  # fmt: skip
def test_mistakes_are_one_line(folder, capsys, words, named):
    words = words if "--model" in words else ["--model", str(folder), *words]
    words = words if "--port" in words else [*words, "--port", "0"]
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert named in error


def test_empty_key_is_refused(folder, capsys, monkeypatch, tmp_path):
    (tmp_path / "key").write_text("\n")
    words = ["serve", "--model", str(folder), "--port", "0"]
    assert main([*words, "--api-key-file", str(tmp_path / "key")]) == 2
    monkeypatch.setenv("LIT_MOSS_API_KEY", "two words")
    assert main(words) == 2
    assert "two words" not in capsys.readouterr().err


def test_bound_socket_is_not_open_before_the_server_listens():
    bound = bind("127.0.0.1", 0)
    with bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=1)
    with pytest.raises(UserError, match="no such address"):
        bind("no.such.host.invalid", 0)


@pytest.mark.nightly
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_drains_the_process(folder, tmp_path, sent, code):
    started = start(tmp_path, "serve", "--model", str(folder), "--port", "0", "--device", "cpu")
    url = address_of(started)
    events = []

    def ask():
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=long_question(), timeout=60) as stream:
            events.extend(stream.iter_lines())

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: len(events) > 4)
    os.kill(started.pid, sent)
    result = started.wait(60)
    thread.join(10)
    assert result.returncode == code, result.stderr
    assert [line for line in events if line][-1] == "data: [DONE]"
    assert "Traceback" not in result.stderr


@pytest.mark.nightly
def test_second_signal_ends_the_process_at_once(folder, tmp_path):
    started = start(tmp_path, "serve", "--model", str(folder), "--port", "0", "--device", "cpu")
    url = address_of(started)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=long_question(most=390)) as stream:
        lines = stream.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["object"] == "chat.completion.chunk"
        os.kill(started.pid, signal.SIGTERM)
        time.sleep(0.3)
        os.kill(started.pid, signal.SIGTERM)
        began = time.monotonic()
        assert started.wait(20).returncode == -signal.SIGTERM
        assert time.monotonic() - began < 2


def address_of(started):
    """What the server's one line says."""
    path = started._output / "out.0"
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    (line,) = path.read_text().splitlines()
    address, _, words = line.partition(": ")
    assert words == "tiny takes text and speech, replies in text and speech"
    return address.removesuffix("/v1")


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
