"""Chat completions on a real socket, driven by the official client."""

import asyncio
import base64
import io
import json
import threading
import time

import httpx
import numpy as np
import pytest
import soundfile
import torch
from live_server import live_server
from openai import AsyncOpenAI, OpenAI
from talker import model_folder, wave

from lit_moss.data.conversation import system_prompt
from lit_moss.llm.replies import reply_codes, reply_text
from lit_moss.llm.sampling import GREEDY
from lit_moss.serve.conversation import Conversation
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.settings import Limits
from lit_moss.serve.sounds import pcm16, sound_bytes

LIMITS = Limits(max_sessions=3, max_turn_sec=4.0, max_upload_bytes=2**20)
SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "pcm16"}}
EXACT = {"temperature": 0}  # greedy, as the reference below
QUESTION = [{"role": "user", "content": "Hi there"}]


def input_audio(samples_T=None, sound_format="wav"):
    content = sound_bytes(wave(1.0) if samples_T is None else samples_T, sound_format)
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(content).decode(), "format": sound_format},
    }


HEARD = [{"role": "user", "content": [input_audio()]}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SpeechModel.open(str(model_folder(tmp_path_factory.mktemp("served") / "tiny")), device="cpu")


@pytest.fixture(scope="module")
def live(model):
    with live_server(model, LIMITS) as live:
        yield live


@pytest.fixture
def client(live):
    with OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client
    live.wait_for_sessions(0)


def ask(client, messages=QUESTION, **options):
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 12, **options})


def expected_rows(model, user, reply, most=12):
    """Rows of a greedy reply, by the language model alone."""
    conversation = Conversation(model.renderer)
    if user == "speech":
        # The file's samples, as the speech tokenizer of any other verb reads them.
        codes = model.speech_tokenizer.encode(heard_wave(), 16_000).tolist()
        conversation.add(conversation.speech_message("user", codes))
    else:
        conversation.add(conversation.text_message("user", "Hi there"))
    prompt = conversation.prompt(reply)
    return model.lm.generate(prompt, max_new_tokens=most, text=GREEDY, speech=GREEDY)


def heard_wave():
    from lit_moss.audio.features import resample

    samples, rate_hz = soundfile.read(io.BytesIO(sound_bytes(wave(1.0), "wav")), dtype="float32")
    return resample(torch.from_numpy(samples), rate_hz, 16_000)


def expected_sound(model, rows):
    player = model.codec.stream(model.codec.no_prompt())
    codes = reply_codes(rows, model.lm.format)
    return pcm16(torch.cat([*(player.push([code]) for code in codes), player.flush()]))


def collect(stream):
    """Deltas of a stream: text, transcript, joined base64, ids, times of expiry, reasons, usage."""
    got = {"content": "", "transcript": "", "data": [], "id": [], "expires_at": [], "finish": [], "usage": []}
    for chunk in stream:
        if chunk.usage is not None:
            got["usage"].append(chunk.usage)
        for choice in chunk.choices:
            got["content"] += choice.delta.content or ""
            got["finish"] += [choice.finish_reason] if choice.finish_reason else []
            audio = (choice.delta.model_extra or {}).get("audio") or getattr(choice.delta, "audio", None)
            if audio is not None:
                audio = audio if isinstance(audio, dict) else audio.model_dump(exclude_none=True)
                got["transcript"] += audio.get("transcript", "")
                for name in ("data", "id", "expires_at"):
                    got[name] += [audio[name]] if name in audio else []
    return got


# --- replies ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("user", ["text", "speech"])
def test_text_reply_holds_what_the_model_writes(client, model, user):
    answer = ask(client, HEARD if user == "speech" else QUESTION, **EXACT)
    rows = expected_rows(model, user, "text")
    message = answer.choices[0].message
    assert message.content == model.text_tokenizer.decode(reply_text(rows, model.lm.format))
    assert (message.role, message.refusal, message.audio) == ("assistant", None, None)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == len(rows) == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


@pytest.mark.slow
@pytest.mark.parametrize("user", ["text", "speech"])
def test_spoken_reply_holds_the_sound_of_the_models_codes(client, model, user):
    answer = ask(client, HEARD if user == "speech" else QUESTION, **SPOKEN, **EXACT)
    rows = expected_rows(model, user, "speech")
    audio = answer.choices[0].message.audio
    assert base64.b64decode(audio.data) == expected_sound(model, rows)
    assert answer.choices[0].message.content is None
    assert audio.transcript == ""  # a direct spoken reply has no text
    assert audio.id.startswith("audio_")
    assert audio.expires_at > time.time()
    assert answer.usage.completion_tokens_details.audio_tokens == len(reply_codes(rows, model.lm.format))
    heard = answer.usage.prompt_tokens_details.audio_tokens
    assert (heard > 0) == (user == "speech")


@pytest.mark.slow
@pytest.mark.parametrize(("sound_format", "container"), [("wav", "WAV"), ("flac", "FLAC"), ("opus", "OGG")])
def test_spoken_reply_comes_in_the_format_asked_for(client, sound_format, container):
    audio = {"voice": {"id": "default"}, "format": sound_format}
    answer = ask(client, modalities=["text", "audio"], audio=audio)
    with soundfile.SoundFile(io.BytesIO(base64.b64decode(answer.choices[0].message.audio.data))) as file:
        assert (file.format, file.samplerate, file.channels) == (container, 24_000, 1)
        assert file.frames == 12 * 1920


def test_guided_reply_has_a_transcript_where_the_model_writes_first(client):
    answer = ask(client, **SPOKEN, extra_body={"reply_form": "guided"})
    assert answer.choices[0].message.audio.transcript


@pytest.mark.slow
def test_same_seed_gives_the_same_reply_and_another_seed_another(client):
    texts = [
        ask(client, seed=seed, temperature=2.0, max_tokens=30).choices[0].message.content
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_instructions_and_text_beside_speech_reach_the_model(client):
    bare = ask(client, HEARD).usage
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hear:"}, input_audio()]},
    ]
    both = ask(client, turns).usage
    assert both.prompt_tokens == bare.prompt_tokens + len(" Be brief.") + len("Hear:")
    assert both.prompt_tokens_details.audio_tokens == bare.prompt_tokens_details.audio_tokens


def test_stop_text_ends_a_text_reply_before_it(client):
    whole = ask(client, **EXACT, max_tokens=30).choices[0].message.content
    stop = whole[6:8]
    expected = whole[: whole.index(stop)]
    answer = ask(client, **EXACT, max_tokens=30, stop=stop)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "stop")
    streamed = collect(ask(client, **EXACT, max_tokens=30, stop=["never said", stop], stream=True))
    assert (streamed["content"], streamed["finish"]) == (expected, ["stop"])


def test_fields_that_change_nothing_are_ignored(client):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    plain = ask(client, **EXACT).choices[0].message.content
    other = ask(client, **EXACT, tools=tools, tool_choice="auto", store=False, metadata={"a": "b"}, n=1,
                user="me", frequency_penalty=0, response_format={"type": "text"}, logprobs=False)  # fmt: skip
    assert other.choices[0].message.content == plain


# --- streams ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_streamed_sound_equals_the_whole_answer(client):
    options = SPOKEN | {"seed": 3, "max_tokens": 33}
    whole = base64.b64decode(ask(client, HEARD, **options).choices[0].message.audio.data)
    got = collect(ask(client, HEARD, **options, stream=True, stream_options={"include_usage": True}))
    assert base64.b64decode("".join(got["data"]), validate=True) == whole
    assert all(len(base64.b64decode(piece)) % 6 == 0 for piece in got["data"])
    assert len(got["data"]) > 1
    assert (len(got["id"]), len(got["expires_at"]), got["finish"]) == (1, 1, ["length"])
    assert [usage.completion_tokens for usage in got["usage"]] == [33]


def test_streamed_text_equals_the_whole_answer(client):
    options = {"seed": 3, "max_tokens": 33, "temperature": 1.5}
    got = collect(ask(client, **options, stream=True))
    assert got["content"] == ask(client, **options).choices[0].message.content
    assert got["usage"] == got["id"] == []


@pytest.mark.slow
def test_clients_stream_helper_adds_up_to_the_whole_answer(client):
    options = SPOKEN | {"seed": 4, "max_tokens": 20}
    with client.chat.completions.stream(model="tiny", messages=QUESTION, **options) as stream:
        for _ in stream:
            pass
        final = stream.current_completion_snapshot  # `get_final_completion` refuses replies of full length
    audio = final.choices[0].message.audio
    audio = audio if isinstance(audio, dict) else audio.model_dump()
    whole = ask(client, **options).choices[0].message.audio
    assert base64.b64decode(audio["data"], validate=True) == base64.b64decode(whole.data)
    assert len(audio["id"]) == len(whole.id)
    assert audio["expires_at"] < time.time() + 2 * 3600


def test_events_are_chunks_between_blank_lines_and_end_with_done(client, live):
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.nightly
def test_sound_arrives_while_the_reply_is_still_being_made(client, live):
    stream = ask(client, **SPOKEN, max_tokens=250, stream=True)
    times, is_running = [], []
    for chunk in stream:
        if chunk.choices and "data" in str(chunk.choices[0].delta):
            times.append(time.monotonic())
            is_running.append(any(not session.reply.done for session in live.sessions))
    assert is_running[0]
    assert sum(is_running) > 3
    assert times[-1] - times[0] > 0.2


@pytest.mark.slow
def test_a_silent_stream_is_kept_open_by_comments(client, live, monkeypatch):
    monkeypatch.setattr("lit_moss.serve.http_streams.PING_SEC", 0.05)
    free = threading.Event()
    live.engine.sounds.submit("another session", lambda: free.wait(20))
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "max_tokens": 12, "seed": 1, **SPOKEN}
    with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body, timeout=20) as stream:
        lines = stream.iter_lines()
        pings = 0
        while pings < 3:
            pings += next(lines) == ": ping"
        free.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    free.clear()
    live.engine.sounds.submit("another session", lambda: free.wait(20))
    stream = ask(client, **SPOKEN, seed=1, stream=True)
    threading.Timer(0.3, free.set).start()
    assert collect(stream)["finish"] == ["length"]
    live.wait_for_sessions(0)


def test_asynchronous_client_streams_too(live):
    async def run():
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client:
            stream = await ask(client, **SPOKEN, stream=True)
            return "".join([str(chunk) async for chunk in stream])

    assert "expires_at" in asyncio.run(run())


def test_leaving_a_stream_ends_the_reply_and_frees_the_session(client, live):
    stream = ask(client, **SPOKEN, max_tokens=300, stream=True)
    iterator = iter(stream)
    next(iterator)
    (session,) = live.sessions
    next(iterator)
    stream.close()
    left = time.monotonic()
    live.wait_for_sessions(0, 2.0)
    while not session.reply.done:
        assert time.monotonic() - left < 2.0
        time.sleep(0.01)
    assert session.reply.cancelled


def test_leaving_before_a_whole_answer_ends_the_reply(live):
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 350, **SPOKEN}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=0.5)
    live.wait_for_sessions(0, 2.0)


@pytest.mark.slow
def test_clients_side_by_side_get_what_each_gets_alone(live):
    def run(seed, got):
        with OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client:
            stream = ask(client, **SPOKEN, seed=seed, temperature=1.5, max_tokens=25, stream=True)
            got[seed] = "".join(collect(stream)["data"])

    alone, together = {}, {}
    for seed in (1, 2, 3):
        run(seed, alone)
    threads = [threading.Thread(target=run, args=(seed, together)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone
    assert len(set(alone.values())) == 3


def test_failure_of_the_decoder_is_an_error_event_and_frees_the_session(client, live, monkeypatch):
    def broken(player, codes):
        raise RuntimeError("the decoder is broken")

    monkeypatch.setattr("lit_moss.codec.codec.Player.push", broken)
    events = httpx.post(
        f"{live.url}/v1/chat/completions",
        json={"model": "tiny", "messages": QUESTION, "stream": True, "max_tokens": 8, **SPOKEN},
    ).text.split("\n\n")
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "reply_failed")
    assert "Traceback" not in error["message"]
    whole = httpx.post(
        f"{live.url}/v1/chat/completions",
        json={"model": "tiny", "messages": QUESTION, "max_tokens": 8, **SPOKEN},
    )
    assert whole.status_code == 500
    assert whole.json()["error"]["code"] == "reply_failed"


# --- later turns --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_earlier_spoken_reply_stands_in_the_prompt_as_its_rows(client):
    first = ask(client, HEARD, **SPOKEN, seed=1)
    audio = first.choices[0].message.audio
    made = first.usage.completion_tokens_details.audio_tokens
    turns = [*HEARD, {"role": "assistant", "audio": {"id": audio.id}}, {"role": "user", "content": "More"}]
    second = ask(client, turns, **SPOKEN)
    heard = first.usage.prompt_tokens_details.audio_tokens
    assert second.usage.prompt_tokens_details.audio_tokens == heard + made


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, SPOKEN], ids=["text", "speech"])
def test_second_question_computes_none_of_the_first_again(client, options):
    first = ask(client, HEARD, **options, seed=1)
    message = first.choices[0].message
    earlier = {"audio": {"id": message.audio.id}} if options else {"content": message.content}
    turns = [*HEARD, {"role": "assistant", **earlier}, {"role": "user", "content": "More"}]
    second = ask(client, turns, **options)
    cached = second.usage.prompt_tokens_details.cached_tokens
    # All but what closes the reply, and the new question.
    assert cached >= first.usage.prompt_tokens + first.usage.completion_tokens - 2
    assert cached < second.usage.prompt_tokens


def test_sound_that_was_heard_before_is_not_encoded_again(client, live, monkeypatch):
    samples_T = wave(0.9, 170.0)
    first = ask(client, [{"role": "user", "content": [input_audio(samples_T)]}], **EXACT)

    def refuse(*args, **options):
        raise AssertionError("encoded again")

    monkeypatch.setattr(live.engine.model.speech_tokenizer, "encode", refuse)
    monkeypatch.setattr(live.engine.model.speech_tokenizer, "stream", refuse)
    second = ask(client, [{"role": "user", "content": [input_audio(samples_T)]}], **EXACT)
    assert first.choices[0].message.content == second.choices[0].message.content


def test_clients_do_not_learn_what_others_asked(client, live):
    question = [
        {"role": "user", "content": [input_audio(wave(0.8, 190.0)), {"type": "text", "text": "Say more"}]}
    ]

    def cached(**options):
        usage = ask(client, question, max_tokens=3, **options).usage
        return usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens

    cached(user="anna")
    system = live.engine.model.renderer
    known, rows = cached(user="anna")
    assert known == rows - 1
    known, _ = cached(user="berta")
    head = [*system.head("system"), *system.ids(system_prompt("text", live.engine.model.record.form))]
    assert known == len(head) + 1  # with <|im_end|>
    assert cached(user="berta")[0] == rows - 1
    assert cached(extra_body={"prompt_cache_key": "berta"})[0] == rows - 1


@pytest.mark.slow
def test_metrics_are_those_of_the_replies(model):
    from prometheus_client.parser import text_string_to_metric_families

    with live_server(model, LIMITS) as live:
        with OpenAI(base_url=live.v1, api_key="any", max_retries=0) as client:
            spoken = ask(client, **SPOKEN, seed=1)
        live.wait_for_sessions(0)

        def metrics():
            text = httpx.get(f"{live.url}/metrics").text
            families = text_string_to_metric_families(text)
            return {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}

        found = metrics()
        assert found["lit_moss_sessions",] == found["lit_moss_draining",] == 0
        assert found["lit_moss_sessions_opened_total",] == found["lit_moss_replies_total", "length"] == 1
        assert found["lit_moss_rows_total", "speech"] == 12
        assert found["lit_moss_prefilled_rows_total",] == spoken.usage.prompt_tokens
        assert found["lit_moss_first_sound_seconds_count",] == 1
        body = {"model": "tiny", "messages": QUESTION, "stream": True, "max_tokens": 200, "seed": 1, **SPOKEN}
        with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as stream:
            next(stream.iter_raw())
            live.server.stop()
            assert metrics()["lit_moss_draining",] == 1


def test_models_are_listed(client):
    (one,) = client.models.list().data
    assert (one.id, one.object, one.owned_by) == ("tiny", "model", "lit_moss")
    assert client.models.retrieve("tiny").created == one.created


def test_mp3_in_and_out(client):
    answer = ask(client, [{"role": "user", "content": [input_audio(sound_format="mp3")]}],
                 modalities=["audio"], audio={"voice": "default", "format": "mp3"})  # fmt: skip
    content = base64.b64decode(answer.choices[0].message.audio.data)
    assert content[0] == 0xFF  # a frame of MPEG audio
    assert content[1] & 0xE0 == 0xE0
    assert answer.usage.prompt_tokens_details.audio_tokens > 10


def test_samples_are_little_endian_and_clipped():
    assert pcm16(torch.tensor([0.0, 1.0, -1.0, 2.0])) == np.array([0, 32767, -32767, 32767], "<i2").tobytes()
