"""Conversations over the Realtime interface, held by OpenAI's client on a real socket."""

import asyncio
import base64
import threading

import numpy as np
import pytest
import torch
from live_server import running
from realtime_server import GREEDY, b64, connected, shared_model, sound, types, without_repeats
from talker import wave

from lit_moss.serve.sounds import pcm16


@pytest.fixture(scope="module")
def server():
    with running(shared_model(), max_sessions=4, max_turn_sec=20) as server:
        yield server


def order(kind):
    speaks = kind == "output_audio"
    return [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        f"response.{kind}.delta",
        f"response.{kind}.done",
        *(["response.output_audio_transcript.done"] if speaks else []),
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]


@pytest.mark.nightly
@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("kind", ["output_text", "output_audio"])
def test_four_modes_send_all_events_in_their_order(server, listens, kind):
    modalities = ["audio" if kind == "output_audio" else "text"]
    with connected(server, output_modalities=modalities) as client:
        if listens:
            added = client.speak(wave(0.6))
            assert types(added) == [
                "input_audio_buffer.committed", "conversation.item.added", "conversation.item.done",
            ]  # fmt: skip
            assert added[0]["item_id"] == added[1]["item"]["id"]
            assert added[1]["item"]["content"] == [{"type": "input_audio", "transcript": None}]
        else:
            client.say("Good morning")
        events = client.respond()
        assert without_repeats(types(events)) == order(kind)
        assert types(events).count(f"response.{kind}.delta") > 1
        assert len({e["event_id"] for e in events}) == len(events)
        response, item = events[-1]["response"], events[-2]["item"]
        assert response["output"] == [item]
        assert response["output_modalities"] == modalities
        assert response["status"] == item["status"] == "incomplete"  # 40 rows
        assert response["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
        for e in events:
            assert e.get("response_id", response["id"]) == response["id"]
            assert e.get("item_id", item["id"]) == item["id"]
        if kind == "output_text":
            joined = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
            assert joined == item["content"][0]["text"] != ""


@pytest.mark.slow
def test_streamed_sound_is_that_of_the_codes(server):
    with connected(server, lit_moss=GREEDY | {"codes": True, "temperature": 1.0, "seed": 3}) as client:
        client.say("Tell me something")
        events = client.respond(max_output_tokens=33)
    codes = [c for e in events if e["type"] == "lit_moss.codes.delta" for c in e["codes"]]
    assert 20 < len(codes) <= 33
    player = shared_model().codec.stream()
    # One code at a time: the phases of Griffin-Lim depend on how many frames come together.
    whole_T = torch.cat([*(player.push([code]) for code in codes), player.flush()])
    expected = np.frombuffer(pcm16(whole_T), "<i2")
    assert len(sound(events)) == 1920 * len(codes)
    assert np.abs(sound(events).astype(int) - expected).max() <= 1
    timing = events[-2]
    assert timing["type"] == "lit_moss.response.timing"
    assert timing["response_id"] == events[-1]["response"]["id"]
    assert timing["usage"]["first_sound_sec"] > 0
    assert {"prompt_rows", "cached_rows", "prefilled_rows"} <= set(timing["usage"])


@pytest.mark.slow
def test_deltas_arrive_before_the_end_and_a_cancel_stops_them(server):
    with connected(server, max_output_tokens=1500) as client:
        client.say("Good morning")
        client.send(type="response.create")
        begun = client.until("response.output_audio.delta")
        response_id = begun[0]["response"]["id"]
        client.send(type="response.cancel", response_id=response_id)
        rest = client.until("response.done")
        ended = types(rest).index("response.output_audio.done")
        assert not [name for name in types(rest[ended:]) if name.endswith(".delta")]
        assert without_repeats(types(rest))[-6:] == order("output_audio")[-6:]
        response = rest[-1]["response"]
        assert response["status"] == "cancelled"
        assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        assert len(sound(begun + rest)) < 1920 * 1500 / 2
        # What was made stays in the history, and the session goes on.
        item = response["output"][0]
        assert item["status"] == "incomplete"
        client.send(type="conversation.item.retrieve", item_id=item["id"])
        assert client.until("conversation.item.retrieved")[-1]["item"] == item
        assert client.error(type="response.cancel")["code"] == "response_cancel_not_active"
        client.say("Go on")
        again = client.respond(max_output_tokens=10)
        assert types(again).count("response.done") == 1
        assert again[-1]["response"]["status"] == "incomplete"


def test_a_cancel_does_not_lose_the_turn_that_is_being_encoded(server):
    free = threading.Event()
    with connected(server, output_modalities=["text"]) as client:
        server.engine.sounds.submit("another session", lambda: free.wait(20))
        client.speak(wave(1.0))
        client.send(type="response.create")
        client.until("response.created")
        client.send(type="response.cancel")
        assert client.until("response.done")[-1]["response"]["status"] == "cancelled"
        free.set()
        response = client.respond(max_output_tokens=3)[-1]["response"]
        assert response["usage"]["input_token_details"]["audio_tokens"] == 13


@pytest.mark.slow
def test_temperature_zero_is_greedy(server):
    with connected(server, output_modalities=["text"]) as client:
        client.say("Good morning")
        greedy = client.respond(conversation="none")[-1]["response"]["output"]
        client.update(lit_moss={"temperature": 0.0, "repetition_penalty": None, "top_k": 20, "top_p": 0.95})
        assert (
            client.respond(conversation="none")[-1]["response"]["output"][0]["content"]
            == greedy[0]["content"]
        )
        client.update(lit_moss={"repetition_penalty": 1.9})
        assert (
            client.respond(conversation="none")[-1]["response"]["output"][0]["content"]
            != greedy[0]["content"]
        )


@pytest.mark.slow
def test_a_response_right_after_a_cancel_waits_for_its_end(server):
    with connected(server, max_output_tokens=1500) as client:
        client.say("Good morning")
        client.send(type="response.create")
        client.until("response.output_audio.delta")
        client.send(type="response.cancel")
        client.send(type="response.create", response={"max_output_tokens": 10})
        assert client.until("response.done")[-1]["response"]["status"] == "cancelled"
        assert client.until("response.done")[-1]["response"]["status"] == "incomplete"


@pytest.mark.slow
def test_one_response_at_a_time(server):
    with connected(server, max_output_tokens=1500) as client:
        client.say("Good morning")
        client.send(type="response.create")
        client.until("response.output_audio.delta")
        error = client.error(type="response.create", event_id="mine")
        assert error["code"] == "conversation_already_has_active_response"
        assert error["event_id"] == "mine"
        client.send(type="response.cancel")
        client.until("response.done")


async def replies_to(server, text, seed, turns=2):
    """Sound and codes of some turns, by the asynchronous client."""
    from openai import AsyncOpenAI

    heard = []
    async with AsyncOpenAI(base_url=server.v1, api_key="x").realtime.connect(model="m") as connection:
        extras = GREEDY | {"temperature": 1.0, "seed": seed, "codes": True}
        await connection.session.update(
            session={"type": "realtime", "max_output_tokens": 30, "lit_moss": extras, "instructions": text}
        )
        for turn in range(turns):
            content = [{"type": "input_text", "text": f"{text} {turn}"}]
            await connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": content}
            )
            await connection.response.create()
            async for event in connection:
                assert event.type != "error", event
                if event.type == "response.output_audio.delta":
                    heard.append(event.delta)
                elif event.type == "response.done":
                    break
    return b"".join(base64.b64decode(part) for part in heard)


@pytest.mark.nightly
def test_sessions_side_by_side_hear_what_they_hear_alone(server):
    asked = [("one", 1), ("two", 2), ("three", 3)]

    async def together():
        return await asyncio.gather(*(replies_to(server, *a) for a in asked))

    alone = [asyncio.run(replies_to(server, *a)) for a in asked]
    assert asyncio.run(together()) == alone
    assert len(set(alone)) == 3
    assert all(len(sound) > 1920 * 2 * 20 for sound in alone)


@pytest.mark.slow
def test_items_of_speech_equal_speech_from_the_buffer(server):
    extras = GREEDY | {"temperature": 1.0, "seed": 4}
    replies = []
    for by_item in (False, True):
        with connected(server, lit_moss=extras) as client:
            if by_item:
                content = [{"type": "input_audio", "audio": b64(wave(0.8))}]
                client.send(
                    type="conversation.item.create",
                    item={"type": "message", "role": "user", "content": content},
                )
                client.until("conversation.item.done")
            else:
                client.speak(wave(0.8))
            replies.append(sound(client.respond()))
    assert len(replies[0])
    assert np.array_equal(*replies)


@pytest.mark.slow
def test_history_is_edited(server):
    with connected(server) as client:
        first = client.say("one")
        client.send(
            type="conversation.item.create",
            previous_item_id="root",
            item={
                "id": "mine",
                "type": "message",
                "role": "system",
                "content": [{"type": "input_text", "text": "be kind"}],
            },
        )
        added = client.until("conversation.item.done")
        assert added[0]["previous_item_id"] is None
        assert added[0]["item"]["id"] == "mine"
        events = client.respond()
        reply = events[-1]["response"]["output"][0]
        assert events[types(events).index("conversation.item.added")]["previous_item_id"] == first["id"]
        length_ms = 80 * 40

        client.send(type="conversation.item.truncate", item_id=reply["id"], content_index=0, audio_end_ms=500)
        cut = client.until("conversation.item.truncated")[-1]
        assert (cut["item_id"], cut["content_index"], cut["audio_end_ms"]) == (reply["id"], 0, 500)
        fault = client.error(
            type="conversation.item.truncate", item_id=reply["id"], content_index=0, audio_end_ms=500
        )
        assert fault["param"] == "audio_end_ms"
        assert "480 ms" in fault["message"]
        assert length_ms > 500

        client.send(type="conversation.item.delete", item_id=reply["id"])
        assert client.until("conversation.item.deleted")[-1]["item_id"] == reply["id"]
        fault = client.error(type="conversation.item.retrieve", item_id=reply["id"])
        assert fault["code"] == "item_not_found"
        # As if the reply had never been: the same question gets the same answer.
        assert sound(client.respond()).tolist() == sound(events).tolist()


@pytest.mark.nightly
def test_responses_have_settings_of_their_own(server):
    with connected(server) as client:
        client.say("one")
        usual = sound(client.respond())
        client.send(
            type="conversation.item.delete", item_id=client.respond(conversation="auto", max_output_tokens=1)
            [-1]["response"]["output"][0]["id"],
        )  # fmt: skip
        client.until("conversation.item.deleted")

        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"}]}
        aside = client.respond(conversation="none", input=[message], metadata={"topic": "x"})
        response = aside[-1]["response"]
        assert not [name for name in types(aside) if name.startswith("conversation.")]
        assert response["conversation_id"] is None
        assert response["metadata"] == {"topic": "x"}
        assert np.array_equal(sound(aside), usual)
        item_id = response["output"][0]["id"]
        assert client.error(type="conversation.item.retrieve", item_id=item_id)["code"] == "item_not_found"

        short = client.respond(conversation="none", max_output_tokens=3, output_modalities=["text"])
        assert short[-1]["response"]["max_output_tokens"] == 3
        assert "response.output_text.done" in types(short)
        assert client.session["max_output_tokens"] == 40

        other = client.respond(conversation="none", input=[message], instructions="Speak of the sea. " * 5)
        assert not np.array_equal(sound(other), usual)
        empty = client.respond(conversation="none", input=[])
        assert empty[-1]["response"]["status"] == "incomplete"


@pytest.mark.slow
def test_a_second_turn_computes_only_its_own_rows(server):
    with connected(server, lit_moss=GREEDY | {"codes": True}) as client:
        client.speak(wave(0.8))
        first = client.respond()
        client.speak(wave(0.8, pitch_hz=200))
        second = client.respond()
        usage = second[-1]["response"]["usage"]
        before = first[-1]["response"]["usage"]
        details = usage["input_token_details"]
        assert usage["input_tokens"] == details["text_tokens"] + details["audio_tokens"]
        assert details["audio_tokens"] == 2 * 10 + 40
        assert usage["output_token_details"]["audio_tokens"] == 40
        # All of the first turn and its reply were in the cache, but for the row that was drawn last.
        assert details["cached_tokens"] >= before["total_tokens"] - 1
        timing = second[-2]["usage"]
        assert timing["prefilled_rows"] + timing["cached_rows"] == usage["input_tokens"]


@pytest.mark.slow
def test_a_session_keeps_its_voice_after_the_first_sound(server):
    voices = shared_model().voices
    voices["other"] = voices["default"]
    try:
        with connected(server) as client:
            client.say("one")
            client.respond(
                conversation="none", audio={"output": {"voice": "other"}}, output_modalities=["text"]
            )
            sound(client.respond())
            change = {"audio": {"output": {"voice": "other"}}}
            for event in (
                {"type": "session.update", "session": {"type": "realtime", **change}},
                {"type": "response.create", "response": change},
            ):
                error = client.error(**event)
                assert error["code"] == "cannot_update_voice"
            sound(client.respond())
    finally:
        del voices["other"]
