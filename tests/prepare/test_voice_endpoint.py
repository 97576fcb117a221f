"""A voice behind a real server of `/v1/audio/speech`, which speaks with hibari."""

import io
import json
import socket
import threading
import time

import pytest
import soundfile

from lit_moss.errors import UserError
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.speak import SpeakOptions
from lit_moss.prepare.step import Machine, Step
from lit_moss.prepare.synthesize import SynthesizeOptions
from lit_moss.prepare.voice_protocol import CannotSay, Wording
from lit_moss.prepare.voices import VoicePool, VoiceSettings

fastapi, uvicorn = pytest.importorskip("fastapi"), pytest.importorskip("uvicorn")
pytest.importorskip("openai")
KEY = "sesame-4711"


class SpeechServer:
    """The server, what it was asked, and how often it is to be too busy."""

    def __init__(self) -> None:
        from hibari import Hibari

        self.requests: list[dict] = []
        self.busy = 0
        hibari, app = Hibari(), fastapi.FastAPI()

        @app.post("/v1/audio/speech")
        async def speech(request: fastapi.Request):
            if request.headers.get("authorization") != f"Bearer {KEY}":
                return fastapi.responses.JSONResponse({"error": "who are you"}, 401)
            body = await request.json()
            self.requests.append(body)
            if self.busy:
                self.busy -= 1
                return fastapi.responses.JSONResponse({"error": "busy"}, 429, {"Retry-After": "0.05"})
            if "forbidden" in body["input"]:
                return fastapi.responses.JSONResponse({"error": "refused"}, 400)
            if "prose" in body["input"]:
                return fastapi.responses.PlainTextResponse("Sorry, here is no sound.")
            buffer = io.BytesIO()
            soundfile.write(buffer, hibari(body["input"], seed=1), 24_000, format="WAV")
            return fastapi.Response(buffer.getvalue(), media_type="audio/wav")

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/v1?model=tts-1&voice=alloy&lang=en"
        self._server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self):
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self._server.started
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture(scope="module")
def running():
    with SpeechServer() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setenv("SPEECH_KEY", KEY)
    running.requests.clear()
    running.busy = 0
    return running


def run(stage: str, options, items: list[dict], folder):
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(item) + "\n" for item in items))
    run_step(Step(stage, stage, options, (str(source),), str(folder), str(folder)), Machine())
    return [
        [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("manifest.jsonl", "rejected.jsonl")
    ]


@pytest.mark.slow
def test_texts_are_spoken_by_the_endpoint_and_the_key_is_written_nowhere(server, tmp_path, capfd):
    server.busy = 2
    options = SynthesizeOptions(
        voices=[server.address], api_key_env="SPEECH_KEY", min_speed=1.1, max_speed=1.1
    )
    texts = [
        {"id": "a", "text": "He paid $3 for the old book."},
        {"id": "b", "text": "This one is a forbidden text for it."},
        {"id": "c", "text": "This one gets prose for an answer."},
    ]
    items, rejected = run("synthesize", options, texts, tmp_path / "out")
    assert [(i["id"], i["speaker"], i["spoken"]) for i in items] == [
        ("a-0000", "tts-1-alloy", "He paid three dollars for the old book.")
    ]
    assert [r["reason"] for r in rejected] == [
        "the endpoint refused the text",
        "the endpoint sent no wav file",
    ]
    first = server.requests[0]
    assert first == {
        "model": "tts-1", "voice": "alloy", "input": "He paid three dollars for the old book.",
        "response_format": "wav", "speed": 1.1,
    }  # fmt: skip
    assert server.requests[:3] == [first] * 3  # twice busy, then spoken
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_styles_become_instructions(server, tmp_path):
    options = SpeakOptions([server.address], ["embedded:hibari"], api_key_env="SPEECH_KEY")
    messages = [
        {"role": "user", "content": "I have won the first prize!", "style": "happy"},
        {"role": "assistant", "content": "That is very good to hear.", "style": "excited"},
    ]
    [item], _ = run("speak", options, [{"id": "x", "messages": messages}], tmp_path / "out")
    assert [m["speaker"] for m in item["messages"]] == ["tts-1-alloy", "hibari-heart"]
    assert [r.get("instructions") for r in server.requests] == ["Speak in this tone: happy."]
    counts = json.loads((tmp_path / "out/stage.json").read_text())["counts"]["counts"]
    assert counts == {"messages spoken in a style": 1, "messages whose voice takes no style": 1}


def test_a_wrong_key_stops_the_run(server, monkeypatch):
    monkeypatch.setenv("SPEECH_KEY", "wrong")
    voice = VoicePool([server.address], VoiceSettings(api_key_env="SPEECH_KEY")).voices[0]
    voice.open()
    with pytest.raises(UserError, match=r"answered 401 .*\$SPEECH_KEY"):
        voice.say(Wording("Hello.", "en"))


def test_a_text_that_is_refused_is_not_asked_again(server):
    voice = VoicePool([server.address], VoiceSettings(api_key_env="SPEECH_KEY")).voices[0]
    voice.open()
    with pytest.raises(CannotSay):
        voice.say(Wording("forbidden", "en"))
    assert len(server.requests) == 1
