"""Where the server refused a turn or the settings, the page asked for a reply nevertheless: the model
answered what had been said before, and the text that was refused was gone from its box."""

import shutil

import pytest
import torch
from chat_page import (
    ARGUMENTS,
    choose_reply,
    error_with,
    opened,
    question_file,
    say,
    text_of,
    wait_until_silent,
)

from lit_moss.audio import io
from lit_moss.serve import realtime_items
from lit_moss.serve.realtime_session import MAX_TEXT

pytestmark = pytest.mark.nightly
LONG = "rain " * 200  # more bytes, each an id, than the tiny model has positions for


def replies_of(engine):
    return sum(engine.counts.replies.values())


def paste(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")


def test_a_text_that_does_not_fit_goes_back_into_its_box(page, server):
    _, engine = server
    choose_reply(page, "text")
    before = replies_of(engine)
    paste(page, LONG)
    error_with(page, "positions")
    page.wait_for_timeout(300)
    assert page.locator("#text").input_value() == LONG.strip()
    assert page.locator("#history > li").count() == 0
    assert replies_of(engine) == before
    page.fill("#text", "")
    say(page, "What is rain?")
    wait_until_silent(page)
    assert page.locator("#history > li").count() == 2
    assert text_of(page)
    assert replies_of(engine) == before + 1


def test_boxes_take_as_much_as_the_server(page):
    for name in ("#text", "[name=instructions]"):
        assert page.locator(name).get_attribute("maxlength") == str(MAX_TEXT)


def test_settings_that_are_refused_are_said_before_anything_is_sent(page, server):
    _, engine = server
    choose_reply(page, "text")
    before = replies_of(engine)
    page.locator("[name=instructions]").evaluate("box => box.removeAttribute('maxlength')")
    page.fill("[name=instructions]", "x" * (MAX_TEXT + 1))
    say(page, "What is rain?")
    error_with(page, "instructions")
    page.wait_for_timeout(300)
    assert page.locator("#text").input_value() == "What is rain?"
    assert page.locator("#history > li").count() == 0
    page.fill("[name=instructions]", "")
    page.press("#text", "Enter")
    wait_until_silent(page)
    assert replies_of(engine) == before + 1


def test_a_sound_that_does_not_arrive_is_not_answered(browser, server, tmp_path):
    script = """
      const send = WebSocket.prototype.send;
      WebSocket.prototype.send = function (data) {
        if (!data.includes("input_audio_buffer.append")) send.call(this, data);
      };
    """
    with opened(browser, server[0], script=script) as page:
        choose_reply(page, "text")
        before = replies_of(server[1])
        page.set_input_files("#file", question_file(tmp_path)[0])
        error_with(page, "the buffer holds 0 ms")
        page.wait_for_timeout(300)
        assert page.locator("#history > li").count() == 0
        assert replies_of(server[1]) == before


def test_a_turn_that_was_found_and_refused_is_not_waited_for(
    playwright, server, tmp_path, speech, monkeypatch
):
    """Hands-free. The page waited for its reply for good, and sent nothing more."""
    path = tmp_path / "microphone.wav"
    io.write(path, torch.cat([speech[0], torch.zeros(32_000)]), 16_000)
    arguments = [
        *ARGUMENTS, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}",
    ]  # fmt: skip
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
    try:
        with opened(browser, server[0], permissions=["microphone"]) as page:
            choose_reply(page, "text")
            monkeypatch.setattr(realtime_items, "MAX_ITEMS", 0)
            page.locator("[name=hands_free]").check()
            page.click("#mic")
            error_with(page, "0 items in this conversation")
            assert page.locator(".assistant").count() == 0
            page.click("#mic")
            page.wait_for_selector("#mic[aria-pressed=false]")
            monkeypatch.undo()
            say(page, "What is rain?")
            wait_until_silent(page)
            assert page.locator(".assistant").count() == 1
    finally:
        browser.close()
