"""Settings of Realtime sessions, and what is refused."""

import json

import pytest
from live_server import running
from realtime_server import b64, connected, shared_model
from talker import wave

from lit_moss.serve.realtime_events import Refused
from lit_moss.serve.realtime_session import ResponseSettings, SessionSettings


@pytest.fixture(scope="module")
def server():
    with running(shared_model(), max_turn_sec=2) as server:
        yield server


def settings(**changes):
    return SessionSettings(id="sess_1", model="talker", expires_at=1, output_modalities=["audio"], **changes)


def updated(old, voice_is_fixed=False, **update):
    return old.updated({"type": "realtime", **update}, voice_is_fixed)


VAD = {"type": "server_vad", "threshold": 0.7}


def test_updates_are_merged_at_every_depth():
    new = updated(settings(), audio={"input": {"turn_detection": VAD}}, instructions="be kind")
    new = updated(new, audio={"input": {"turn_detection": {"silence_duration_ms": 200}}})
    vad = new.audio.input.turn_detection
    assert (vad.threshold, vad.silence_duration_ms, vad.create_response) == (0.7, 200, True)
    assert new.instructions == "be kind"
    assert new.audio.output.voice == "default"
    assert updated(new, instructions="").instructions == ""
    assert updated(new, audio={"input": {"turn_detection": None}}).audio.input.turn_detection is None


def test_the_voice_cannot_change_after_the_first_sound():
    old = settings()
    assert updated(old, audio={"output": {"voice": {"id": "other"}}}).audio.output.voice == "other"
    assert updated(old, voice_is_fixed=True, audio={"output": {"voice": "default"}}) == old
    with pytest.raises(Refused) as refused:
        updated(old, voice_is_fixed=True, audio={"output": {"voice": "other"}})
    assert refused.value.code == "cannot_update_voice"


@pytest.mark.parametrize(
    ("update", "code", "param"),
    [
        ({"nonsense": 1}, "unknown_parameter", "session.nonsense"),
        ({"audio": {"input": {"rate": 1}}}, "unknown_parameter", "session.audio.input.rate"),
        ({"output_modalities": ["text", "audio"]}, "invalid_value", "session.output_modalities"),
        ({"output_modalities": []}, "invalid_value", "session.output_modalities"),
        ({"instructions": 5}, "invalid_type", "session.instructions"),
        ({"instructions": "\ud800"}, None, "session.instructions"),
        ({"instructions": "x" * 40_000}, None, "session.instructions"),
        ({"max_output_tokens": 0}, "invalid_value", "session.max_output_tokens"),
        ({"max_output_tokens": True}, "invalid_value", "session.max_output_tokens"),
        ({"model": "other"}, "invalid_value", "session.model"),
        ({"id": "sess_2"}, "invalid_value", "session.id"),
        ({"type": "transcription"}, "invalid_value", "session.type"),
        (
            {"audio": {"input": {"format": {"type": "audio/pcmu"}}}},
            "invalid_value",
            "session.audio.input.format.type",
        ),
        (
            {"audio": {"output": {"format": {"rate": 16000}}}},
            "invalid_value",
            "session.audio.output.format.rate",
        ),
        ({"audio": {"output": {"speed": 1.5}}}, "invalid_value", "session.audio.output.speed"),
        (
            {"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}},
            "invalid_value",
            "session.audio.input.turn_detection.type",
        ),
        (
            {"audio": {"input": {"turn_detection": VAD | {"threshold": 2}}}},
            "invalid_value",
            "session.audio.input.turn_detection.threshold",
        ),
        ({"audio": "loud"}, "invalid_type", "session.audio"),
        ({"lit_moss": {"temperature": -1}}, "invalid_value", "session.lit_moss.temperature"),
        ({"lit_moss": {"top_p": 0}}, "invalid_value", "session.lit_moss.top_p"),
        ({"lit_moss": {"seed": "a"}}, "invalid_type", "session.lit_moss.seed"),
    ],
)
def test_wrong_settings_are_named(update, code, param):
    with pytest.raises(Refused) as refused:
        updated(settings(), **update)
    assert refused.value.param == param
    assert "\n" not in str(refused.value)
    assert code is None or refused.value.code == code


def test_responses_begin_with_the_settings_of_their_session():
    session = settings(instructions="be kind", max_output_tokens=50)
    response = ResponseSettings.of(session, {"lit_moss": {"seed": 5}, "max_output_tokens": 10})
    options = response.reply_options(shared_limits(max_new_tokens=30))
    assert (response.instructions, options.seed, options.max_new_tokens) == ("be kind", 5, 10)
    assert ResponseSettings.of(session).reply_options(shared_limits(max_new_tokens=30)).max_new_tokens == 30
    for wrong in ({"modalities": ["text"]}, {"conversation": "conv_1"}, {"metadata": {"a": 1}}, "text"):
        with pytest.raises(Refused):
            ResponseSettings.of(session, wrong)


def shared_limits(**changes):
    from lit_moss.serve.settings import Limits

    return Limits(**changes)


def message(role="user", *parts):
    return {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": role, "content": list(parts)},
    }


APPEND = "input_audio_buffer.append"
HALF_SECOND = b64(wave(0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "nonsense"}, "invalid_value"),
        ({"no": "type"}, "invalid_value"),
        ({"type": ["a"]}, "invalid_value"),
        ({"type": "output_audio_buffer.clear"}, "invalid_value"),
        ({"type": "session.update"}, "missing_required_parameter"),
        ({"type": "session.update", "session": {"instructions": "x"}}, "missing_required_parameter"),
        (
            {
                "type": "session.update",
                "session": {"type": "realtime", "audio": {"output": {"voice": "nobody"}}},
            },
            "invalid_value",
        ),
        ({"type": APPEND}, "missing_required_parameter"),
        ({"type": APPEND, "audio": "%%%"}, "invalid_value"),
        ({"type": APPEND, "audio": "YWJj"}, "invalid_value"),  # three bytes
        ({"type": APPEND, "audio": "A" * (20 * 2**20 + 4)}, "invalid_value"),
        ({"type": APPEND, "audio": b64(wave(3))}, "invalid_value"),  # a turn of more than 2 s
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty"),
        (message("user"), "missing_required_parameter"),
        (message("nobody", {"type": "input_text", "text": "x"}), "invalid_value"),
        (message("user", {"type": "input_image", "image_url": "data:"}), "invalid_value"),
        (message("user", {"type": "output_text", "text": "x"}), "invalid_value"),
        (message("user", {"type": "input_text"}), "missing_required_parameter"),
        (message("user", {"type": "input_text", "text": "\ud800"}), "invalid_value"),
        (message("user", {"type": "input_text", "text": "x" * 20_000}), "context_length_exceeded"),
        (message("user", {"type": "input_audio", "audio": "x"}), "invalid_value"),
        (message("user", "text"), "invalid_value"),
        (message("user", {"type": "input_text", "text": "x"}) | {"previous_item_id": "no"}, "item_not_found"),
        (
            {"type": "conversation.item.create", "item": {"type": "function_call_output", "output": "x"}},
            "invalid_value",
        ),
        ({"type": "conversation.item.create"}, "missing_required_parameter"),
        ({"type": "conversation.item.retrieve", "item_id": "no"}, "item_not_found"),
        ({"type": "conversation.item.delete"}, "missing_required_parameter"),
        (
            {"type": "conversation.item.truncate", "item_id": "no", "content_index": 0, "audio_end_ms": 0},
            "item_not_found",
        ),
        ({"type": "response.cancel"}, "response_cancel_not_active"),
        ({"type": "response.cancel", "response_id": "resp_no"}, "response_cancel_not_active"),
        ({"type": "response.create", "response": {"output_modalities": ["video"]}}, "invalid_value"),
        (
            {"type": "response.create", "response": {"audio": {"output": {"voice": "nobody"}}}},
            "invalid_value",
        ),
        (
            {"type": "response.create", "response": {"input": [{"type": "item_reference", "id": "no"}]}},
            "item_not_found",
        ),
    ],
)
def test_wrong_events_are_answered_and_the_session_goes_on(client, event, code):
    error = client.error(**event, event_id="mine")
    assert (error["code"], error["event_id"]) == (code, "mine"), error
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]


@pytest.fixture(scope="module")
def client(server):
    """One session for all of them; it can still do everything at the end."""
    with connected(server) as client:
        yield client
        client.speak(wave(0.5))
        assert client.respond(max_output_tokens=5)[-1]["response"]["status"] == "incomplete"


def test_text_that_is_no_event_is_answered(client):
    for text in ("{", "[]", "null", "NaN", '{"type": NaN}', "[" * 100_000, "1" * 5000, ""):
        client.connection.send_raw(text)
        assert client.until("error")[-1]["error"]["code"] == "invalid_json"
    client.connection.send_raw(json.dumps({"type": "input_audio_buffer.clear"}).encode())
    client.until("input_audio_buffer.cleared")


def test_a_refused_update_changes_nothing(client):
    before = client.update()
    wrong = {"type": "realtime", "instructions": "new", "audio": {"input": {"format": {"rate": 8000}}}}
    client.error(type="session.update", session=wrong)
    assert client.update() == before


def test_session_created_states_everything(server):
    from openai import OpenAI

    with OpenAI(base_url=server.v1, api_key="x").realtime.connect(model="m") as connection:
        event = connection.recv()
        assert event.type == "session.created"
        assert event.session.type == "realtime"
        assert event.session.audio.input.turn_detection is None  # push to talk
        assert event.session.audio.output.voice == "default"
        assert event.session.output_modalities == ["audio"]


def test_a_turn_that_is_too_long_keeps_what_was_taken(server):
    with connected(server) as client:
        client.send(type=APPEND, audio=HALF_SECOND)
        client.error(type=APPEND, audio=b64(wave(1.8)))
        client.send(type="input_audio_buffer.commit")
        client.until("conversation.item.done")
        client.respond(max_output_tokens=3)


@pytest.mark.slow
def test_speech_without_a_code_is_taken_out_of_the_history(server):
    with connected(server) as client:
        part = {"type": "input_audio", "audio": ""}
        error = client.error(**message("user", part))
        assert error["code"] == "invalid_audio"
        client.say("one")
        assert client.respond(max_output_tokens=3)[-1]["response"]["status"] == "incomplete"
