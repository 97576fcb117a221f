"""What tests of the Realtime interface speak with, and the model that they share."""

import base64
import contextlib
import functools
import json
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from live_server import Live

from lit_moss.serve.model import SpeechModel

GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


@functools.cache
def shared_model() -> SpeechModel:
    """The model of all these tests."""
    from talker import model_folder

    with tempfile.TemporaryDirectory() as folder:
        return SpeechModel.open(str(model_folder(Path(folder) / "model")), device="cpu")


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
def connected(server: Live, **session):
    """A client with greedy replies of 40 rows, and the settings given."""
    from openai import OpenAI

    with OpenAI(base_url=server.v1, api_key="x").realtime.connect(model="m") as connection:
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
