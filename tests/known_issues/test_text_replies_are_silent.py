"""A model that wrote sosp and codes into a reply in text was heard: chat completions streamed its sound."""

import json

import httpx
import pytest
import torch
import websockets.sync.client as websocket
from live_server import live_server
from talker import model_folder

from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import AudioDelta, CodesDelta, ReplyOptions

ANY = {"temperature": 2, "top_k": 0, "top_p": 1}  # the seed below writes sosp within 60 rows


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    model = SpeechModel.open(str(model_folder(tmp_path_factory.mktemp("silent") / "tiny")), device="cpu")
    with torch.no_grad():  # heads without preferences: sosp comes by itself
        for branch in model.lm.branches:
            branch.head.weight.mul_(0.01)
    with live_server(model) as live:
        yield live


@pytest.fixture(scope="module")
def seed(live):
    """A seed whose reply in text to `Hi` holds codes enough for sound."""
    from lit_moss.llm.sampling import sampling_of

    session = live.engine.open_session()
    try:
        conversation = session.conversation
        conversation.add(conversation.text_message("user", "Hi"))
        sampling = sampling_of(**ANY)
        for seed in range(40):
            options = ReplyOptions("text", None, 120, sampling, sampling, seed)
            events = list(session.start_reply(options))
            if sum(isinstance(event, CodesDelta) for event in events) > 20:
                assert not any(isinstance(event, AudioDelta) for event in events)
                return seed
    finally:
        session.close()
    raise AssertionError("no reply with codes")


@pytest.mark.slow
def test_no_sound_is_streamed_that_was_not_asked_for(live, seed):
    question = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 120,
                "seed": seed, "stream": True, "stream_options": {"include_usage": True}, **ANY}  # fmt: skip
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=question, timeout=60)
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert chunks[-1]["usage"]["completion_tokens_details"]["audio_tokens"] > 20
    assert not [c for c in chunks if c["choices"] and "audio" in c["choices"][0]["delta"]]


@pytest.mark.slow
def test_no_sound_comes_in_a_realtime_response_in_text(live, seed):
    settings = {"output_modalities": ["text"], "max_output_tokens": 120,
                "lit_moss": {**ANY, "seed": seed, "codes": True}}  # fmt: skip
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    names = []
    with websocket.connect(live.ws) as connection:
        connection.send(json.dumps({"type": "conversation.item.create", "item": item}))
        connection.send(json.dumps({"type": "response.create", "response": settings}))
        while "response.done" not in names:
            names.append(json.loads(connection.recv(timeout=30))["type"])
    assert not [name for name in names if "audio" in name]
    assert "error" not in names
