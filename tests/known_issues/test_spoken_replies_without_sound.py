"""A spoken reply that ended before its first code was a file of no bytes as FLAC or MP3, with status 200."""

import base64
import io

import httpx
import pytest
import soundfile
from live_server import live_server
from talker import model_folder

from lit_moss.serve.model import SpeechModel

FORMATS = ("wav", "flac", "mp3", "opus", "pcm16")


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    model = SpeechModel.open(str(model_folder(tmp_path_factory.mktemp("mute") / "tiny")), device="cpu")
    with live_server(model) as live:
        yield live


@pytest.mark.parametrize("sound_format", FORMATS)
def test_it_is_a_short_silence(live, sound_format):
    # Guided replies begin with text.
    question = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
                "modalities": ["text", "audio"], "temperature": 0, "reply_form": "guided",
                "audio": {"voice": "default", "format": sound_format}}  # fmt: skip
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=question, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens_details"]["audio_tokens"] == 0
    content = base64.b64decode(answer.json()["choices"][0]["message"]["audio"]["data"])
    if sound_format == "pcm16":
        assert content == bytes(2 * 1920)
        return
    samples, rate_hz = soundfile.read(io.BytesIO(content))
    assert rate_hz in (24_000, 48_000)
    assert len(samples) >= 0.08 * rate_hz
    assert abs(samples).max() < 1e-3
