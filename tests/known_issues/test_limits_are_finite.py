"""Limits that are no finite numbers: they were taken, or ended the server with a traceback, and a session
without end cost a place for each Realtime client."""

import json
import math
from dataclasses import replace

import pytest
import websockets.sync.client as websocket
from live_server import live_server
from talker import model_folder
from websockets.exceptions import ConnectionClosed

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.serve import realtime
from lit_moss.serve.context import Context
from lit_moss.serve.engine import Engine
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.page import page_config
from lit_moss.serve.settings import Limits


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SpeechModel.open(str(model_folder(tmp_path_factory.mktemp("limits") / "tiny")), device="cpu")


@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "-1"])
@pytest.mark.parametrize(
    "option", ["--session-sec", "--idle-sec", "--max-turn-sec", "--kept-mb", "--max-upload-mb", "--drain-sec"]
)
def test_an_option_that_is_no_finite_number_is_named(capsys, option, value):
    # Nothing is opened before: there is no such model.
    assert main(["serve", "--model", "no-such-model", "--port", "0", f"{option}={value}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {option} is {float(value)}, expected ")


@pytest.mark.parametrize("megabytes", ["1e305", "1e-07"])
def test_sizes_that_are_no_number_of_bytes(capsys, megabytes):
    assert main(["serve", "--model", "no-such-model", "--port", "0", "--kept-mb", megabytes]) == 2
    assert f"--kept-mb is {float(megabytes)}, expected" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.inf, math.nan, 0, -1.0])
def test_limits_of_a_program_are_checked_too(value):
    with pytest.raises(UserError, match="session_sec is"):
        Limits(session_sec=value)


@pytest.mark.slow
def test_a_connection_that_cannot_be_made_leaves_its_place(model, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(realtime, "Connection", broken)
    with live_server(model, Limits(max_sessions=1)) as live:
        for _ in range(3):
            with websocket.connect(live.ws) as connection, pytest.raises(ConnectionClosed):
                connection.recv()
            live.wait_for_sessions(0)
        monkeypatch.undo()
        with websocket.connect(live.ws) as connection:
            assert json.loads(connection.recv())["type"] == "session.created"


@pytest.mark.parametrize(("most", "expected"), [(40, 40), (2000, 500)])
def test_the_page_asks_for_no_more_rows_than_the_server_allows(model, most, expected):
    """Its form refused its own default and sent nothing."""
    engine = Engine(model, replace(Limits(), max_new_tokens=most))
    try:
        config = page_config(Context(engine))
    finally:
        engine.close()
    assert config["settings"]["max_tokens"] == expected
    assert config["limits"]["max_new_tokens"] == most
