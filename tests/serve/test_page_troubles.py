"""The page where something is missing: a sound that is none, a key, a server, https, a sound card."""

import contextlib
import shutil

import pytest
from chat_page import (
    ARGUMENTS,
    LAST,
    choose_reply,
    error_with,
    opened,
    question_file,
    say,
    serving,
    settings,
    text_of,
    wait_until_silent,
)

pytestmark = pytest.mark.nightly


def test_bad_file_is_one_line_and_the_session_goes_on(page, tmp_path):
    for name, content in {"broken.wav": b"RIFF" + bytes(100), "empty.mp3": b""}.items():
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#file", tmp_path / name)
        error_with(page, f"{name} cannot be read as sound")
        assert page.locator("#history > li").count() == 0
    choose_reply(page, "text")
    say(page, "What is rain?")
    wait_until_silent(page)
    assert page.locator("#error").text_content() == ""
    assert text_of(page)


def test_what_the_server_refuses_is_shown_in_words(browser, model, tmp_path):
    with serving(model, max_sessions=1, max_turn_sec=1.5) as (address, _), \
            opened(browser, address) as page, opened(browser, address) as other:  # fmt: skip
        choose_reply(page, "text")
        say(page, "What is rain?")
        wait_until_silent(page)
        say(other, "What is rain?")
        error_with(other, "sessions are taken")
        path, _ = question_file(tmp_path, seconds=2.0)
        page.set_input_files("#file", path)
        error_with(page, "at most 1.5 s")


def test_key_is_asked_for_where_the_server_has_one(browser, model):
    phone = {"width": 390, "height": 844}  # on which the settings are closed
    with serving(model, api_key="a-key_1") as (address, _), opened(browser, address, viewport=phone) as page:
        choose_reply(page, "text")
        say(page, "What is rain?")
        error_with(page, "asks for an API key")
        assert page.locator("[name=key]").evaluate("box => box === document.activeElement")
        page.fill("[name=key]", "wrong")
        say(page, "What is rain?")
        error_with(page, "API key is not the server's")
        page.fill("[name=key]", "a-key_1")
        say(page, "What is rain?")
        wait_until_silent(page)
        assert text_of(page)


def test_message_that_could_not_be_sent_is_still_in_its_box(browser, model):
    with contextlib.ExitStack() as stack:
        with serving(model) as (address, _):
            page = stack.enter_context(opened(browser, address))
            choose_reply(page, "text")
        say(page, "What is rain?")
        error_with(page, "is it running?")
        assert page.locator("#text").input_value() == "What is rain?"
        assert page.locator("#history > li").count() == 0


def test_server_that_ends_is_shown_in_words(browser, model):
    with contextlib.ExitStack() as stack:
        with serving(model) as (address, _):
            page = stack.enter_context(opened(browser, address))
            choose_reply(page, "text")
            say(page, "What is rain?")
            wait_until_silent(page)
        error_with(page, "begins a new session")


def test_without_https_a_spoken_reply_is_played_once_it_is_whole(playwright, model):
    arguments = [*ARGUMENTS, "--host-resolver-rules=MAP talk.test 127.0.0.1"]
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
    try:
        with serving(model) as (address, _), \
                opened(browser, address.replace("127.0.0.1", "talk.test")) as page:  # fmt: skip
            assert not page.evaluate("isSecureContext")
            page.click("#mic")
            error_with(page, "on https and on localhost")
            say(page, "What is rain?")
            wait_until_silent(page)
            error_with(page, "played once they are whole")
            assert page.locator(f"{LAST} summary").text_content() == "40 codes"
            page.wait_for_selector(f"{LAST} .play[aria-label=Pause]")
            page.wait_for_selector(f"{LAST} .play[aria-label=Play]", timeout=10_000)
    finally:
        browser.close()


def test_sound_that_does_not_start_holds_no_reply_up(browser, server):
    """Without a sound card Firefox never fulfils `resume`."""
    script = """
      AudioContext.prototype.resume = () => new Promise(() => {});
      Object.defineProperty(AudioContext.prototype, "state", {get: () => "suspended"});
    """
    with opened(browser, server[0], script=script) as page:
        choose_reply(page, "text")
        say(page, "What is rain?")
        wait_until_silent(page)
        assert text_of(page)
        assert page.locator("#error").text_content() == ""
        choose_reply(page, "speech")
        say(page, "And snow?")
        page.wait_for_selector("#history > li:nth-child(4)")
        wait_until_silent(page)
        error_with(page, "has not started its sound")
        assert page.locator(f"{LAST} .play").is_enabled()


def test_focus_stays_in_its_place_and_replies_are_read_out_whole(page):
    choose_reply(page, "text")
    settings(page, max_tokens=400)
    page.click("#text")
    page.keyboard.type("What is rain?")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "send"
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{LAST}.assistant[aria-busy=true]")
    assert page.evaluate("document.activeElement.id") in ("stop", "send")
    wait_until_silent(page)
    assert page.locator(LAST).get_attribute("aria-busy") == "false"
    assert page.evaluate("document.activeElement.id") == "send"
    assert page.locator(f"{LAST} .speaker").text_content() == "Model:"
