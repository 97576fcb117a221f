"""Wrong requests get OpenAI's error object with the right status, and leave nothing behind."""

import base64
import io
import json
import socket
import struct
import tempfile
import time

import httpx
import numpy as np
import openai
import pytest
import soundfile
from live_server import live_server
from openai import OpenAI
from talker import model_folder, wave

from lit_moss.errors import UserError
from lit_moss.serve.chat_request import IGNORED, parse_request
from lit_moss.serve.kept import Kept
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.settings import Limits
from lit_moss.serve.sounds import Base64Chunks, read_upload, sound_bytes
from lit_moss.serve.stop_texts import StopTexts

LIMITS = Limits(max_sessions=1, max_turn_sec=4.0, max_upload_bytes=2**20)
SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "pcm16"}}
QUESTION = [{"role": "user", "content": "Hi"}]
KEY = "correct-horse"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SpeechModel.open(str(model_folder(tmp_path_factory.mktemp("refusing") / "tiny")), device="cpu")


@pytest.fixture(scope="module")
def live(model):
    with live_server(model, LIMITS) as live:
        yield live


@pytest.fixture
def uploads(monkeypatch, tmp_path):
    """The folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def post(live, body, **options):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{live.url}/v1/chat/completions", content=content, timeout=30, **options)


def refused(live, status, **fields):
    answer = post(live, {"model": "tiny", "messages": QUESTION, "max_tokens": 2, **fields})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    live.wait_for_sessions(0)
    return error


def heard(content, sound_format="wav"):
    data = content if isinstance(content, str) else base64.b64encode(content).decode()
    sound = {"data": data, "format": sound_format}
    return [{"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}]


def wav(samples, rate_hz=24_000, subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="WAV", subtype=subtype)
    return file.getvalue()


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


WRONG_FIELDS = {
    "messages": ({"messages": []}, "messages"),
    "no message": ({"messages": "Hi"}, "messages"),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "no parts": ({"messages": user()}, "messages[0].content"),
    "kind of part": ({"messages": user({"type": "image_url"})}, "messages[0].content[0]"),
    "no text": ({"messages": user({"type": "text"})}, "messages[0].content[0].text"),
    "number as text": ({"messages": user({"type": "text", "text": 3})}, "messages[0].content[0].text"),
    "format of sound": ({"messages": heard("AAAA", "exe")}, "messages[0].content[0].input_audio.format"),
    "no sound": ({"messages": user({"type": "input_audio", "input_audio": {"format": "wav"}})},
                 "messages[0].content[0].input_audio.data"),
    "system that speaks": ({"messages": [{"role": "system", "content": heard("AAAA")[0]["content"]}]},
                           "messages[0].content[0].type"),
    "empty assistant": ({"messages": [*QUESTION, {"role": "assistant"}]}, "messages[1].content"),
    "unknown reply": ({"messages": [{"role": "assistant", "audio": {"id": "audio_x"}}]},
                      "messages[0].audio.id"),
    "modality": ({"modalities": ["video"]}, "modalities[0]"),
    "no audio options": ({"modalities": ["text", "audio"]}, "audio"),
    "aac": ({"modalities": ["audio"], "audio": {"voice": "default", "format": "aac"}}, "audio.format"),
    "no voice": ({"modalities": ["audio"], "audio": {"format": "wav"}}, "audio.voice"),
    "unknown voice": ({"modalities": ["audio"], "audio": {"voice": "alloy", "format": "wav"}}, "audio.voice"),
    "streamed wav": ({"modalities": ["audio"], "audio": {"voice": "default", "format": "wav"},
                      "stream": True}, "audio.format"),
    "two replies": ({"n": 2}, "n"),
    "temperature": ({"temperature": -1}, "temperature"),
    "temperature as text": ({"temperature": "0.5"}, "temperature"),
    "top_p": ({"top_p": 0}, "top_p"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens"),
    "seed": ({"seed": 2**70}, "seed"),
    "penalty": ({"frequency_penalty": 1.0}, "frequency_penalty"),
    "logprobs": ({"logprobs": True}, "logprobs"),
    "response_format": ({"response_format": {"type": "json_object"}}, "response_format"),
    "form": ({"reply_form": "sung", **SPOKEN}, "reply_form"),
    "form of text": ({"reply_form": "guided"}, "reply_form"),
    "five stops": ({"stop": list("abcde")}, "stop"),
    "stop of speech": ({"stop": "a", **SPOKEN}, "stop"),
    "options of streams": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "misspelt": ({"temprature": 1}, "temprature"),
    "too long": ({"messages": [{"role": "user", "content": "a" * 600}]}, "messages"),
    "far too long": ({"messages": [{"role": "user", "content": "a" * 100_000}]}, "messages"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_wrong_field_is_named(live, name):
    fields, param = WRONG_FIELDS[name]
    error = refused(live, 400, **fields)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"a": "\\ud800"}', b"\xff", b"[" * 100_000])
def test_body_that_is_no_request(live, body):
    answer = post(live, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_missing_model_and_another_model(live):
    assert post(live, {"messages": QUESTION}).json()["error"]["param"] == "model"
    answer = post(live, {"model": "gpt", "messages": QUESTION})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    with OpenAI(base_url=f"{live.url}/v1", api_key="x") as client, pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/v1/chat/completions", 405), ("GET", "/v1/nothing", 404), ("GET", "/nothing", 404),
])  # fmt: skip
def test_wrong_addresses(live, method, path, status):
    answer = httpx.request(method, live.url + path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


# --- sound --------------------------------------------------------------------------------------------------


def broken_sounds():
    tone = wave(1.0).numpy()
    whole = wav(tone)
    return {
        "no base64": "ü",
        "empty": "",
        "no sound": b"<html>not found</html>",
        "header alone": whole[:44],
        "cut off": whole[: len(whole) // 2],
        "not finite": wav(np.where(np.arange(len(tone)) == 500, np.nan, tone), subtype="FLOAT"),
        "not scaled": wav(tone * 30_000, subtype="FLOAT"),
        "too long": wav(np.zeros(5 * 8000), 8000),
        "many channels": wav(np.zeros((800, 64))),
        "odd rate": whole[:24] + struct.pack("<I", 7) + whole[28:],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", broken_sounds())
def test_sound_that_cannot_be_used(live, uploads, name):
    error = refused(live, 400, messages=heard(broken_sounds()[name]))
    assert error["param"] == "messages[0].content[0].input_audio.data"
    assert error["code"] == "invalid_audio"
    assert str(uploads) not in error["message"]


def test_cut_off_download_of_the_shared_cases_is_refused(live, uploads, contract):
    content = (contract.parent / "cases" / "trunc.wav").read_bytes()
    assert refused(live, 400, messages=heard(content))["code"] == "invalid_audio"


def test_two_streams_in_one_file_are_heard_whole(live, uploads):
    file = io.BytesIO()
    soundfile.write(file, wave(1.0).numpy(), 24_000, format="OGG", subtype="VORBIS")
    one = file.getvalue()
    codes = []
    for content in (one, one + one.replace(one[14:18], b"abcd")):  # another serial number
        answer = post(live, {"model": "tiny", "messages": heard(content, "ogg"), "max_tokens": 2})
        if answer.status_code == 200:
            codes.append(answer.json()["usage"]["prompt_tokens_details"]["audio_tokens"])
    # Checksums of the second do not match its new number: whole, or refused, never half.
    assert codes in ([codes[0]], [codes[0], 2 * codes[0]])


@pytest.mark.parametrize("rate_hz", [8000, 11025, 44100, 48000, 44101, 192000])
def test_any_rate_is_heard(rate_hz):
    samples_T = read_upload(wav(wave(0.5, rate_hz=rate_hz).numpy(), rate_hz), 4.0)
    assert abs(len(samples_T) - 8000) <= 1


def test_temporary_files_are_gone(uploads):
    assert len(read_upload(sound_bytes(wave(1.0), "flac"), 4.0)) == 16_000
    with pytest.raises(UserError, match=r"expected at most 0\.5 s"):
        read_upload(sound_bytes(wave(1.0), "wav"), 0.5)


# --- limits -------------------------------------------------------------------------------------------------


def test_too_large_requests_are_refused_before_they_are_in_memory(live):
    body = b" " * (LIMITS.max_upload_bytes + 1)
    stated = post(live, body)
    in_pieces = httpx.post(
        f"{live.url}/v1/chat/completions", content=iter([body[:2**19], body[2**19 :]]), timeout=30
    )  # fmt: skip
    for answer in (stated, in_pieces):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


def test_requests_that_never_come_are_ended(model):
    with live_server(model, Limits(idle_sec=0.5)) as live:
        port = int(live.url.rpartition(":")[2])
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1000\r\n\r\n{"
            client.sendall(head.encode())
            # The head and the body may come in two pieces; the server closes the connection after them.
            answer = b"".join(iter(lambda: client.recv(2**16), b""))
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"too_slow" in answer
        assert 0.4 < time.monotonic() - began < 5
        # One that leaves in the middle of its upload is nobody's fault.
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(head.encode())
        end = time.monotonic() + 5
        while live.context.work.requests and time.monotonic() < end:
            time.sleep(0.01)
        assert live.context.work.requests == 0


def test_full_server_refuses_and_says_when_to_try_again(live):
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "max_tokens": 300, **SPOKEN}
    with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as stream:
        raw = stream.iter_raw()
        next(raw)
        answer = post(live, {"model": "tiny", "messages": QUESTION})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "session_limit_reached"
        with (
            OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client,
            pytest.raises(openai.RateLimitError),
        ):
            client.chat.completions.create(model="tiny", messages=QUESTION)
    live.wait_for_sessions(0)
    assert post(live, {"model": "tiny", "messages": QUESTION, "max_tokens": 2}).status_code == 200


def test_sessions_are_free_after_many_wrong_and_right_requests(live):
    for n in range(6):
        content = sound_bytes(wave(0.3), "wav") if n % 2 else b"none"
        post(live, {"model": "tiny", "messages": heard(content), "max_tokens": 2})
    live.wait_for_sessions(0)


# --- who may ask --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(model):
    with live_server(
        model, LIMITS, api_key=KEY, hosts=("127.0.0.1", "localhost"), cors_origins=("https://example.org",)
    ) as live:
        yield live


@pytest.mark.slow
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer ü"])
def test_key_is_asked_for(guarded, header):
    headers = {} if header is None else {"authorization": header.encode()}
    for path in ("models", "models/tiny", "chat/completions", "nothing"):
        answer = httpx.get(f"{guarded.url}/v1/{path}", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_right_key_is_taken(guarded):
    with OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0) as client:
        assert client.models.list().data[0].id == "tiny"
    with (
        OpenAI(base_url=f"{guarded.url}/v1", api_key="other", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    assert httpx.get(f"{guarded.url}/health").json() == {"status": "ok", "model": "tiny"}


def test_other_names_of_the_server_are_refused(guarded):
    headers = {"authorization": f"Bearer {KEY}", "host": "evil.example"}
    answer = httpx.get(f"{guarded.url}/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_host")


def test_pages_of_listed_origins_alone_may_read(guarded, live):
    asked = {"origin": "https://example.org", "access-control-request-method": "POST",
             "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    allowed = httpx.options(f"{guarded.url}/v1/chat/completions", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    other = httpx.options(f"{guarded.url}/v1/chat/completions", headers=asked | {"origin": "https://other"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in httpx.get(f"{live.url}/health", headers=asked).headers


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "http://127.0.0.1.evil"])
def test_foreign_pages_cannot_use_a_server_without_a_key(live, guarded, origin):
    answer = httpx.get(f"{live.url}/v1/models", headers={"origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
    assert httpx.get(f"{live.url}/v1/models", headers={"origin": live.url}).status_code == 200
    headers = {"origin": origin, "authorization": f"Bearer {KEY}"}  # a page that knows the key may
    assert httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == 200


# --- parts --------------------------------------------------------------------------------------------------


def test_ignored_fields_are_fields_of_the_client():
    """So that a field that a newer client sends is decided on, not forgotten."""
    from openai.types.chat import completion_create_params as params

    known = set(params.CompletionCreateParamsNonStreaming.__annotations__)
    known |= set(params.CompletionCreateParamsBase.__annotations__)
    from lit_moss.serve.chat_request import ChatRequest

    assert known - IGNORED - set(ChatRequest.model_fields) == set()
    assert known >= IGNORED


def test_text_and_parts_are_the_same_request():
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    one, other = (json.dumps({"model": "m", "messages": m}).encode() for m in (QUESTION, parts))
    assert parse_request(one).messages == parse_request(other).messages


@pytest.mark.parametrize(("pieces", "stops", "passed"), [
    (["abc", "def"], [], "abcdef"),
    (["ab", "cd", "ef"], ["cde"], "ab"),
    (["aab", "aabc"], ["aabc"], "aab"),
    (["abc"], ["bcd"], "abc"),
    (["xyz"], ["z", "y"], "x"),
    (["a", "\n", "\n", "b"], ["\n\n"], "a"),
])  # fmt: skip
def test_stop_texts(pieces, stops, passed):
    stop = StopTexts(stops)
    assert "".join(stop.push(piece) for piece in pieces) + stop.flush() == passed


def test_base64_texts_can_be_joined():
    data, chunks = bytes(range(256)) * 3, Base64Chunks()
    texts = [chunks.push(data[n : n + 7]) for n in range(0, len(data), 7)] + [chunks.flush()]
    assert base64.b64decode("".join(texts), validate=True) == data
    assert all(len(base64.b64decode(text)) % 6 == 0 for text in texts[:-1])


def test_kept_values_are_bounded_in_number_and_age():
    kept = Kept(2, 0.2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1
    kept.put("c", 3)  # b was used longest ago
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (1, None, 3)
    time.sleep(0.25)
    assert kept.get("a") is None
    assert len(kept) == 1
