"""Conversations over the Realtime interface, held by OpenAI's client on a real socket."""

import pytest
from realtime_server import connected, running, types, without_repeats
from talker import model_folder, wave

from lit_moss.serve.model import SpeechModel


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SpeechModel.open(str(model_folder(tmp_path_factory.mktemp("talker") / "model")), device="cpu")


@pytest.fixture(scope="module")
def server(model):
    with running(model, max_sessions=4, max_turn_sec=20) as server:
        yield server


SPOKEN = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("speaks", [False, True])
def test_the_four_modes(server, listens, speaks):
    with connected(server, output_modalities=["audio" if speaks else "text"]) as client:
        if listens:
            committed = client.speak(wave(0.6))
            assert types(committed) == [
                "input_audio_buffer.committed",
                "conversation.item.added",
                "conversation.item.done",
            ]
        else:
            client.say("Good morning")
        events = client.respond()
        names = without_repeats(types(events))
        print(names, events[-1])
