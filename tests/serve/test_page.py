"""The page in a real browser, on a real server and a tiny model; what it shows is what the engine makes."""

import io
import json
import shutil
import time
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_page import (
    ARGUMENTS,
    DONE,
    LAST,
    choose_reply,
    opened,
    question_file,
    say,
    settings,
    text_of,
    wait_until_silent,
)

from lit_moss.audio import io as audio_io
from lit_moss.llm.sampling import GREEDY
from lit_moss.serve.app import Context, create_app
from lit_moss.serve.engine import Engine
from lit_moss.serve.page import FILES
from lit_moss.serve.replies import AudioDelta, ReplyDone, ReplyOptions

PAGE = Path(__file__).resolve().parents[2] / "lit_moss" / "serve" / "page"


def sound_of(page, selector):
    """Samples of a message's download."""
    with page.expect_download() as waiting:
        page.click(f"{selector} a.save")
    with wave.open(str(waiting.value.path())) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def expected(engine, turns, reply, rows=40):
    """Text and sound of the greedy reply to turns, texts or waves, by the engine alone."""
    session = engine.open_session()
    try:
        for turn in turns:
            if isinstance(turn, str):
                message = session.conversation.text_message("user", turn)
            else:
                message = session.conversation.speech_message("user", engine.encode(turn, 24_000).result())
            session.conversation.add(message)
        greedy = GREEDY  # as the page asks for: temperature 0 and no penalty
        options = ReplyOptions(reply, max_new_tokens=rows, text=greedy, speech=greedy)
        sounds = [torch.zeros(0)]
        for event in session.start_reply(options):
            if isinstance(event, AudioDelta):
                sounds.append(event.samples_T)
            elif isinstance(event, ReplyDone):
                text = session.conversation.reply_message(event.rows, event.prompt).text
        return text, torch.cat(sounds)
    finally:
        session.close()


def assert_same_sound(pcm, samples_T):
    assert len(pcm) == len(samples_T) > 0
    assert np.abs(pcm / 32767 - samples_T.numpy().clip(-1, 1)).max() < 1e-4


# --- what the server gives ----------------------------------------------------------------------------------


def client_of(model, api_key=None):
    from fastapi.testclient import TestClient

    engine = Engine(model)
    app = create_app(Context(engine, api_key))
    return TestClient(app), engine


@pytest.mark.slow
def test_page_is_complete_and_loads_nothing_from_elsewhere(model):
    client, engine = client_of(model)
    try:
        for name, kind in FILES.items():
            answer = client.get("/" if name == "index.html" else f"/page/{name}")
            assert answer.status_code == 200
            assert answer.headers["content-type"] == kind
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
            assert "https://" not in answer.text
        assert {f.name for f in PAGE.iterdir() if f.is_file()} - {"__init__.py"} == set(FILES)
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["no.js", "__init__.py", "..%2fapp.py", "%2e%2e/app.py", "....//app.py"])
def test_no_other_file_is_served(model, name):
    client, engine = client_of(model)
    try:
        assert client.get(f"/page/{name}").status_code == 404
    finally:
        engine.close()


def test_config_states_what_the_model_can_and_never_the_key(model):
    client, engine = client_of(model, api_key="secret")
    try:
        config = client.get("/page/config.json")
        assert "secret" not in config.text
        assert config.json() | {"settings": None, "limits": None} == {
            "model": "tiny", "voices": ["default"], "can_listen": True, "can_speak": True,
            "can_find_turns": True, "needs_key": True, "codebook": 64, "settings": None, "limits": None,
        }  # fmt: skip
    finally:
        engine.close()


# --- in the browser -----------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("reply", ["speech", "text"])
@pytest.mark.parametrize("user", ["speech", "text"])
def test_reply_is_that_of_the_engine_in_all_four_modes(page, server, tmp_path, user, reply):
    choose_reply(page, reply)
    if user == "text":
        turn = "What is rain?"
        say(page, turn)
    else:
        path, turn = question_file(tmp_path)
        page.set_input_files("#file", path)
    wait_until_silent(page)
    text, samples_T = expected(server[1], [turn], reply)
    assert text_of(page).strip() == text.strip()
    if reply == "speech":
        assert_same_sound(sound_of(page, LAST), samples_T)
        assert "first sound" in page.locator(f"{LAST} .note").text_content()
        assert "real-time factor" in page.locator(f"{LAST} .note").text_content()
        assert page.locator(f"{LAST} summary").text_content() == "40 codes"
    else:
        assert text
        assert page.locator(f"{LAST} .sound").is_hidden()
    if user == "speech":
        assert_same_sound(sound_of(page, "#history > li:first-child"), turn * 32768 / 32767)
        assert page.locator("#history > li:first-child canvas").first.evaluate("wave => wave.width") > 50


@pytest.mark.nightly
def test_text_grows_and_sound_is_heard_before_the_reply_is_whole(page):
    page.evaluate("""() => {
      window.lengths = new Set();
      new MutationObserver(() => {
        const reply = document.querySelector('.assistant[data-state=running] .text');
        if (reply) window.lengths.add(reply.textContent.length);
      }).observe(document.getElementById('history'), {subtree: true, childList: true});
    }""")
    settings(page, max_tokens=120)
    choose_reply(page, "text")
    say(page, "What is rain?")
    wait_until_silent(page)
    assert len(page.evaluate("[...window.lengths]")) > 5
    settings(page, max_tokens=250)
    choose_reply(page, "speech")
    say(page, "And snow?")
    page.wait_for_selector(f"{LAST}.assistant[data-state=running][data-first-sound]", timeout=30_000)
    page.keyboard.press("Escape")
    page.wait_for_selector(DONE)
    first_sound_sec = float(page.locator(LAST).get_attribute("data-first-sound"))
    assert 0 < first_sound_sec < 30


@pytest.mark.nightly
def test_stop_ends_the_reply_and_the_conversation_keeps_what_was_heard(page, server):
    _, engine = server
    settings(page, max_tokens=400)
    say(page, "What is rain?")
    page.wait_for_selector(f"{LAST}[data-first-sound]", timeout=30_000)
    page.wait_for_timeout(600)
    page.click("#stop")
    page.wait_for_selector(f"{LAST}.assistant[data-state=cancelled]")
    page.wait_for_selector("#stop", state="hidden")
    assert "stopped" in page.locator(f"{LAST} .note").text_content()
    made = sum(engine.counts.rows.values())
    say(page, "Again?")
    page.click("#stop")
    page.wait_for_selector(DONE)
    assert sum(engine.counts.rows.values()) - made < 400
    record, _ = download(page)
    heard_sec = record["turns"][1]["heardSeconds"]
    codes = session_of(engine).conversation.messages[1].codes(engine.model.lm.format)
    assert 0.3 < heard_sec < 0.08 * 400
    assert len(codes) == int(heard_sec / 0.08 + 1e-6)
    assert page.locator("#error").text_content() == ""


def session_of(engine):
    (session,) = engine.sessions
    return session


def download(page):
    """conversation.json of the download, and its WAV files."""
    with page.expect_download() as waiting:
        page.click("#save")
    with zipfile.ZipFile(waiting.value.path()) as file:
        assert file.testzip() is None
        record = json.loads(file.read("conversation.json"))
        return record, {name: file.read(name) for name in file.namelist() if name.endswith(".wav")}


@pytest.mark.nightly
def test_download_holds_every_turn(page, tmp_path):
    path, wave_T = question_file(tmp_path)
    page.set_input_files("#file", path)
    wait_until_silent(page)
    choose_reply(page, "text")
    say(page, "What is rain?")
    wait_until_silent(page)
    record, sounds = download(page)
    assert [turn["role"] for turn in record["turns"]] == ["user", "assistant"] * 2
    assert [turn["audio"] for turn in record["turns"]] == ["01_user.wav", "02_assistant.wav", None, None]
    assert record["turns"][2]["text"] == "What is rain?"
    assert len(record["turns"][1]["codes"]) == 40
    with wave.open(io.BytesIO(sounds["01_user.wav"])) as file:
        assert file.getnframes() == len(wave_T)
    with wave.open(io.BytesIO(sounds["02_assistant.wav"])) as file:
        assert file.getnframes() == 40 * 1920


@pytest.mark.nightly
def test_clear_begins_a_new_conversation(page, server):
    _, engine = server
    choose_reply(page, "text")
    say(page, "What is rain?")
    wait_until_silent(page)
    first = text_of(page)
    say(page, "And snow?")
    wait_until_silent(page)
    page.click("#clear")
    assert page.locator("#history > li").count() == 0
    assert page.locator("#welcome").is_visible()
    deadline = time.monotonic() + 10
    while engine.sessions and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not engine.sessions
    say(page, "What is rain?")
    wait_until_silent(page)
    assert text_of(page) == first


@pytest.mark.nightly
def test_two_sessions_side_by_side_are_not_mixed(browser, server, tmp_path):
    address, engine = server
    with opened(browser, address) as one, opened(browser, address) as other:
        choose_reply(other, "text")
        path, wave_T = question_file(tmp_path, pitch_hz=210)
        other.set_input_files("#file", path)
        say(one, "What is rain?")
        wait_until_silent(one)
        wait_until_silent(other)
        assert len(engine.sessions) == 2
        assert_same_sound(sound_of(one, LAST), expected(engine, ["What is rain?"], "speech")[1])
        assert text_of(other).strip() == expected(engine, [wave_T], "text")[0].strip()


@pytest.mark.nightly
def test_microphone_turns_by_button_and_hands_free(playwright, server, tmp_path, speech):
    """Chromium's fake microphone plays a file of a voice and a pause, over and over."""
    path = tmp_path / "microphone.wav"
    audio_io.write(path, torch.cat([speech[0], torch.zeros(32_000)]), 16_000)
    arguments = [
        *ARGUMENTS, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}",
    ]  # fmt: skip
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
    try:
        with opened(browser, server[0], permissions=["microphone"]) as page:
            choose_reply(page, "text")
            page.click("#mic")
            page.wait_for_selector("#mic[aria-pressed=true]")
            page.wait_for_timeout(1500)
            page.click("#mic")
            wait_until_silent(page)
            heard = sound_of(page, "#history > li:first-child")
            assert 0.5 < len(heard) / 24_000 < 5
            assert np.abs(heard).max() > 1000
            page.locator("[name=hands_free]").check()
            page.click("#mic")
            page.wait_for_selector("#history > li:nth-child(4):not([data-state=running])", timeout=30_000)
            page.click("#mic")
            assert len(sound_of(page, "#history > li:nth-child(3)")) > 12_000
            assert page.locator("#error").text_content() == ""
    finally:
        browser.close()


@pytest.mark.nightly
def test_page_fits_a_phone(browser, server):
    with opened(browser, server[0], viewport={"width": 390, "height": 844}, has_touch=True) as page:
        say(page, "What is rain? " * 20)
        wait_until_silent(page)
        page.click(f"{LAST} summary")
        for is_open in (False, True):
            if is_open:
                page.click("#open-settings")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            for selector in ("#mic", "#file-label", "#send", "#open-settings"):
                box = page.locator(selector).bounding_box()
                assert min(box["width"], box["height"]) >= 40
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= 390


@pytest.mark.nightly
def test_resampling_in_chunks_is_that_of_the_whole_and_keeps_a_tone(browser):
    page = browser.new_page()
    page.add_script_tag(content=f"""
        var sampleRate = 48000, AudioWorkletProcessor = class {{}}, registerProcessor = () => {{}};
        {(PAGE / "worklets.js").read_text()}
        window.resampled = (samples, from, to, chunk) => {{
          const resampler = new Resampler(from, to), parts = [];
          for (let n = 0; n < samples.length; n += chunk)
            parts.push(...resampler.push(Float32Array.from(samples.slice(n, n + chunk))));
          return [...parts, ...resampler.flush()];
        }};""")  # fmt: skip
    for rates in ((24_000, 48_000), (24_000, 44_100), (44_100, 24_000), (48_000, 24_000)):
        tone = np.sin(2 * np.pi * 1000 * np.arange(rates[0] // 5) / rates[0]).tolist()
        whole, chunked = (
            page.evaluate("a => window.resampled(...a)", [tone, *rates, chunk]) for chunk in (len(tone), 128)
        )
        assert np.allclose(whole, chunked, atol=1e-6)
        assert abs(len(whole) - rates[1] / 5) <= 1
        ideal = np.sin(2 * np.pi * 1000 * np.arange(len(whole)) / rates[1])
        inside = slice(200, -200)
        assert np.abs(np.array(whole) - ideal)[inside].max() < 2e-3
    page.close()
