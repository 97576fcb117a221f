"""A model without a codec, and one that listens but does not speak: every interface says so in one line."""

import json

import httpx
import pytest
from live_server import live_server
from openai import BadRequestError, OpenAI
from realtime_server import b64
from talker import model_folder, wave
from websockets.sync.client import connect

from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.sounds import sound_bytes

SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "wav"}}
QUESTION = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import shutil

    folder = model_folder(tmp_path_factory.mktemp("silent") / "silent")
    shutil.rmtree(folder / "codec")
    return folder


@pytest.fixture(scope="module")
def live(folder):
    with live_server(SpeechModel.open(str(folder), device="cpu")) as live:
        yield live


def test_chat_completions(live):
    import base64

    audio = {"data": base64.b64encode(sound_bytes(wave(0.5), "wav")).decode(), "format": "wav"}
    heard = [{"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}]
    with OpenAI(base_url=live.v1, api_key="x", max_retries=0) as client:
        create = client.chat.completions.create
        with pytest.raises(BadRequestError, match="silent has no decoder and cannot speak"):
            create(model="silent", messages=QUESTION, **SPOKEN)
        with pytest.raises(BadRequestError, match="silent cannot listen"):
            create(model="silent", messages=heard)
        assert create(model="silent", messages=QUESTION, max_tokens=5).usage.completion_tokens == 5
    live.wait_for_sessions(0)


def test_realtime(live):
    def error(**event):
        socket.send(json.dumps(event))
        answer = json.loads(socket.recv(timeout=10))
        assert answer["type"] == "error"
        return answer["error"]["message"]

    with connect(live.ws) as socket:
        created = json.loads(socket.recv(timeout=10))
        assert created["session"]["output_modalities"] == ["text"]
        silent = "this model has no decoder and cannot speak"
        deaf = "this model cannot listen"
        session = {"type": "realtime", "output_modalities": ["audio"]}
        assert silent in error(type="session.update", session=session)
        assert silent in error(type="response.create", response={"output_modalities": ["audio"]})
        assert deaf in error(type="input_audio_buffer.append", audio=b64(wave(0.2)))
        assert deaf in error(type="input_audio_buffer.commit")
        part = {"type": "input_audio", "audio": b64(wave(0.2))}
        item = {"type": "message", "role": "user", "content": [part]}
        assert deaf in error(type="conversation.item.create", item=item)
        socket.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": 4}}))
        while (event := json.loads(socket.recv(timeout=10)))["type"] != "response.done":
            pass
        assert event["response"]["usage"]["output_tokens"] > 0
    live.wait_for_sessions(0)


def test_page_and_terminal(live, folder, tmp_path, capsys):
    config = httpx.get(f"{live.url}/page/config.json").json()
    assert (config["can_listen"], config["can_speak"], config["voices"]) == (False, False, [])
    io.write(tmp_path / "question.wav", wave(0.5), 24_000)
    start = ["chat", "--model", str(folder), "--device", "cpu"]
    for words, expected in (
        (["--once", str(tmp_path / "question.wav")], "silent cannot listen"),
        (["--text", "Hi", "--out", str(tmp_path / "answer.wav")], "silent has no decoder and cannot speak"),
    ):
        assert main([*start, *words]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert expected in error
    assert not (tmp_path / "answer.wav").exists()
    assert main([*start, "--text", "Hi", "--max-new-tokens", "5"]) == 0
    assert "5 rows" in capsys.readouterr().out
