"""The model as MLflow loads and serves it: text or sound in, text or sound out; what clients may not do."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from database import give_database
from decoders import made_up_codec, small_flow
from lm_recipe import CODES
from spoken_model import spoken_model

from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.errors import UserError
from lit_moss.hub import open_lm
from lit_moss.llm.backbone import load_text_tokenizer
from lit_moss.llm.replies import reply_codes
from lit_moss.release.registry import register


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A registered model, and a working folder with its database."""
    place = tmp_path_factory.mktemp("pyfunc")
    before = Path.cwd()
    os.chdir(place)
    try:
        give_database(place)
        model = spoken_model(place / "model")
        register(model, "talker", "champion")
        yield place
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def address(place):
    """Folder of the version's artifacts, which `models:/talker@champion` stands for."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
    yield "models:/talker@champion"
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def loaded(address):
    import mlflow

    return mlflow.pyfunc.load_model(address)


def question(path: Path, seconds: float = 1.0, rate_hz: int = 24_000) -> Path:
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (150 + 40 * t) * t), rate_hz)
    return path


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def decoded(audio: str, place: Path) -> tuple[np.ndarray, int]:
    (place / "answer.wav").write_bytes(base64.b64decode(audio))
    return soundfile.read(place / "answer.wav")


@pytest.mark.slow
def test_text_is_answered_as_the_model_answers_it(loaded, place):
    from lit_moss.data.conversation import Renderer, Turn

    [answer] = loaded.predict({"text": "abc", "temperature": 0.0, "max_new_tokens": 12}).to_dict("records")
    lm, tokenizer = open_lm(place / "model"), load_text_tokenizer(place / "model")
    prompt = Renderer(tokenizer, lm.format).prompt([Turn("user", "abc")], user="text", reply="text")
    rows = lm.generate(prompt, max_new_tokens=12, greedy=True)
    assert answer["text"] == tokenizer.decode([r for r in rows if r not in lm.stop_ids])
    assert answer["audio"] is None
    assert answer["codes"] == []


@pytest.mark.slow
def test_speech_is_heard_and_answered_with_speech(loaded, place):
    from lit_moss.data.conversation import Renderer, Turn

    file = question(place / "question.wav")
    row = {"audio": encoded(file), "temperature": 0.0, "max_new_tokens": 20}
    [answer] = loaded.predict([row]).to_dict("records")
    lm, codec = open_lm(place / "model"), Codec.from_pretrained(place / "model" / "codec")
    wave_T, rate_hz = soundfile.read(file, dtype="float32")
    codes = codec.encode(torch.from_numpy(wave_T), rate_hz).tolist()
    renderer = Renderer(load_text_tokenizer(place / "model"), lm.format)
    prompt = renderer.prompt([Turn("user", codes=codes)], user="speech", reply="speech")
    assert answer["codes"] == reply_codes(lm.generate(prompt, max_new_tokens=20, greedy=True), lm.format)
    samples, rate_hz = decoded(answer["audio"], place)
    assert rate_hz == 24_000
    assert len(samples) == 1920 * len(answer["codes"])


@pytest.mark.slow
def test_all_four_pairs_in_one_call(loaded, place):
    audio = encoded(question(place / "question.wav"))
    rows = [{"text": "abc", "audio": None, "reply": r} for r in ("text", "speech")]
    rows += [{"text": None, "audio": audio, "reply": r} for r in ("text", "speech")]
    answers = loaded.predict([row | {"max_new_tokens": 9, "seed": 1} for row in rows]).to_dict("records")
    assert [bool(a["audio"]) for a in answers] == [False, True, False, True]
    assert [bool(a["text"]) for a in answers] == [True, False, True, False]


def test_a_seed_decides_the_answer_and_the_system_prompt_changes_it(loaded):
    row = {"text": "abc", "max_new_tokens": 12, "seed": 5, "temperature": 1.0}
    one, two, other = (loaded.predict([r])["text"][0] for r in (row, row, row | {"seed": 6}))
    assert one == two != other
    assert loaded.predict([row | {"system": "Be brief."}])["text"][0] != one


@pytest.mark.parametrize("ending", [".flac", ".ogg", ".mp3"])
def test_formats_of_sound(loaded, place, ending):
    row = {"audio": encoded(question(place / f"question{ending}")), "reply": "text", "max_new_tokens": 2}
    assert len(loaded.predict([row])) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"reply": "text"}, "row 0: got reply, expected either text or audio"),
        ({"text": "a", "audio": "UklG"}, "expected either text or audio"),
        ({"text": "a", "reply": "song"}, "reply is 'song', expected text or speech"),
        ({"text": "a", "max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"text": "a", "temperature": -1.0}, "temperature"),
        ({"audio": "not base64!"}, "no base64"),
        ({"audio": "AAAA"}, "no usable sound file"),
        ({"audio": "/etc/hostname.wav"}, "this model reads no files for its clients"),
        ({"text": "a" * 2000}, "row 0"),
    ],
)
def test_what_cannot_be_answered_says_which_row_and_why(loaded, row, words):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=re.escape(words)) as error:
        loaded.predict([row])
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_small_file_with_hours_of_sound_is_refused_before_it_is_decoded(loaded, place):
    soundfile.write(place / "long.flac", np.zeros(16_000 * 600), 16_000)
    with pytest.raises(Exception, match=r"600\.0 s of sound: expected at most 120 s"):
        loaded.predict([{"audio": encoded(place / "long.flac")}])


def test_paths_are_read_below_the_folder_that_was_allowed(address, place):
    import mlflow

    (place / "questions" / "deep").mkdir(parents=True)
    question(place / "questions" / "deep" / "one.wav")
    question(place / "secret.wav")
    (place / "questions" / "link.wav").symlink_to(place / "secret.wav")
    model = mlflow.pyfunc.load_model(address, model_config={"audio_folder": str(place / "questions")})
    row = {"reply": "text", "max_new_tokens": 2}
    for allowed in ("deep/one.wav", str(place / "questions/deep/one.wav"), "deep/../deep/one.wav"):
        assert len(model.predict([row | {"audio": allowed}])) == 1
    for barred in (
        "../secret.wav",
        str(place / "secret.wav"),
        "link.wav",
        "none.wav",
        "a\0.wav",
        "a" * 999 + ".wav",
    ):
        with pytest.raises(Exception, match="expected a file below the audio_folder"):
            model.predict([row | {"audio": barred}])


def test_no_temporary_file_of_an_upload_stays(loaded, place, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(place / "scratch"))
    (place / "scratch").mkdir(exist_ok=True)
    audio = encoded(question(place / "question.wav"))
    loaded.predict([{"audio": audio, "reply": "text", "max_new_tokens": 2}])
    with pytest.raises(Exception, match="no usable sound file"):
        loaded.predict([{"audio": "AAAA"}])
    assert not list((place / "scratch").iterdir())


@pytest.mark.slow
def test_another_codec_or_tokenizer_is_refused(address, place, tmp_path):
    import mlflow

    made_up_codec(tmp_path / "other", CODES, seed=1)
    Codec(SpeechTokenizer.from_pretrained(tmp_path / "other"), small_flow(vocab_size=CODES)).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(UserError, match=r"was trained with the speech tokenizer \w{16}, .*other has \w{16}"):
        mlflow.pyfunc.load_model(address, model_config={"codec": str(tmp_path / "other")})
    changed = spoken_model(tmp_path / "changed", text_tokenizer="0123456789abcdef")
    register(changed, "changed")
    with pytest.raises(UserError, match="was trained with the text tokenizer 0123456789abcdef, this one is"):
        mlflow.pyfunc.load_model("models:/changed/1")


def test_another_template_is_refused(address, tmp_path):
    import mlflow

    other = spoken_model(tmp_path / "other", codec=False, template="0123456789abcdef")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    register(other, "other")
    with pytest.raises(UserError, match=r"with the template 0123456789abcdef, this one is \w{16}"):
        mlflow.pyfunc.load_model("models:/other/1")


def test_a_model_without_a_codec_answers_text(place, address, tmp_path):
    import mlflow

    register(spoken_model(tmp_path / "mute", codec=False), "mute")
    model = mlflow.pyfunc.load_model("models:/mute/1")
    assert model.predict([{"text": "abc", "max_new_tokens": 4}])["text"][0]
    with pytest.raises(Exception, match="cannot speak"):
        model.predict([{"text": "abc", "reply": "speech"}])


# --- a server in a process of its own -----------------------------------------------------------------------


@pytest.fixture
def server(place):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # MLflow starts `uvicorn`
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/talker@champion",
               "--env-manager", "local", "--port", str(port)]  # fmt: skip
    with (place / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, (place / "serve.log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def ask(address: str, *rows: dict) -> tuple[int, dict]:
    request = urllib.request.Request(
        address, json.dumps({"dataframe_records": rows}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.nightly
def test_mlflow_models_serve_answers(server, loaded, place):
    audio = encoded(question(place / "question.wav"))
    row = {"audio": audio, "reply": "speech", "max_new_tokens": 12, "temperature": 0}
    status, content = ask(server, row)
    assert status == 200
    [answer] = content["predictions"]
    assert answer == loaded.predict([row]).to_dict("records")[0]
    assert len(decoded(answer["audio"], place)[0]) == 1920 * len(answer["codes"])
    status, content = ask(server, {"text": "abc", "max_new_tokens": 4})
    assert status == 200
    assert content["predictions"][0]["audio"] is None
    status, content = ask(server, {"audio": str(place / "question.wav")})
    assert status == 400
    assert "reads no files for its clients" in content["message"]


def test_the_example_of_a_version_can_be_answered(loaded):
    assert len(loaded.predict(loaded.input_example)) == 1
