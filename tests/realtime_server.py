"""A server on a socket of this machine, in a thread, and what tests need to speak with it."""

import asyncio
import base64
import contextlib
import functools
import json
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_moss.serve.app import Context, create_app
from lit_moss.serve.engine import Engine
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.settings import Limits

GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


@functools.cache
def shared_model() -> SpeechModel:
    """The model of all these tests."""
    from talker import model_folder

    with tempfile.TemporaryDirectory() as folder:
        return SpeechModel.open(str(model_folder(Path(folder) / "model")), device="cpu")


@dataclass
class Running:
    """A server that runs."""

    port: int
    engine: Engine
    context: Context
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/realtime"

    def drain(self):
        async def drained():
            await self.context.work.drains[0](10)

        return asyncio.run_coroutine_threadsafe(drained(), self.loop)

    def wait_for_sessions(self, count=0, timeout_sec=5.0):
        end = time.monotonic() + timeout_sec
        while len(self.engine.sessions) != count and time.monotonic() < end:
            time.sleep(0.02)
        assert len(self.engine.sessions) == count


@contextlib.contextmanager
def running(model: SpeechModel, api_key=None, **limits):
    import uvicorn

    engine = Engine(model, Limits(**limits))
    context = Context(engine, api_key)
    app = create_app(context)
    config = uvicorn.Config(app, port=0, log_level="warning", ws_max_size=24 * 2**20)
    server = uvicorn.Server(config)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(),), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(port, engine, context, loop)
    finally:
        server.should_exit = True
        thread.join(15)
        engine.close()


def b64(samples_T: torch.Tensor) -> str:
    return base64.b64encode((samples_T * 32767).round().numpy().astype("<i2").tobytes()).decode()


def sound(events) -> np.ndarray:
    """16-bit samples of the deltas, joined."""
    parts = [e["delta"] for e in events if e["type"] == "response.output_audio.delta"]
    return np.concatenate([np.frombuffer(base64.b64decode(p), "<i2") for p in parts] or [np.zeros(0, "<i2")])


def types(events) -> list[str]:
    return [e["type"] for e in events]


def without_repeats(names):
    return [n for i, n in enumerate(names) if not i or names[i - 1] != n]


@dataclass
class Client:
    """The official client's connection, synchronous, with events as plain dicts."""

    connection: Any
    session: dict = field(default_factory=dict)

    def send(self, **event):
        self.connection.send(event)

    def next(self):
        return json.loads(self.connection.recv_bytes())

    def until(self, *names):
        """Events up to and with one of that type."""
        events = []
        while not events or events[-1]["type"] not in names:
            events.append(self.next())
            unexpected = events[-1]["type"] == "error" and "error" not in names
            assert not unexpected, events[-1]
        return events

    def update(self, **session):
        self.send(type="session.update", session={"type": "realtime", **session})
        return self.until("session.updated")[-1]["session"]

    def say(self, text):
        content = [{"type": "input_text", "text": text}]
        self.send(
            type="conversation.item.create", item={"type": "message", "role": "user", "content": content}
        )
        return self.until("conversation.item.done")[-1]["item"]

    def speak(self, samples_T):
        for piece_T in samples_T.split(2400):
            self.send(type="input_audio_buffer.append", audio=b64(piece_T))
        self.send(type="input_audio_buffer.commit")
        return self.until("conversation.item.done")

    def respond(self, **response):
        self.send(type="response.create", response=response)
        return self.until("response.done")

    def error(self, **event):
        self.send(**event)
        return self.until("error")[-1]["error"]


@contextlib.contextmanager
def connected(server: Running, **session):
    """A client with greedy replies of 40 rows, and the settings given."""
    from openai import OpenAI

    with OpenAI(base_url=server.url, api_key="x").realtime.connect(model="m") as connection:
        client = Client(connection)
        watch = threading.Timer(100, connection.close)  # a test that waits for what never comes fails
        watch.start()
        created = client.next()
        assert created["type"] == "session.created"
        settings = {"max_output_tokens": 40, "lit_moss": GREEDY} | session
        client.session = client.update(**settings)
        try:
            yield client
        finally:
            watch.cancel()
