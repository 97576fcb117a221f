"""`Clear` on the page, while a message waited for the reply before it to end, left the page waiting for good:
no later message was sent. And a session that was still being closed, when the next one was there already,
took that one with it: its reply failed, and its conversation was lost."""

import pytest
from chat_page import DONE, LAST, choose_reply, opened, say, settings, text_of, wait_until_silent

pytestmark = pytest.mark.nightly
# The server never hears of a stop: what waits for the reply's end waits.
NO_CANCEL = """
  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (data) {
    if (!data.includes("response.cancel")) send.call(this, data);
  };
"""
SLOW_CLOSE = """
  const close = WebSocket.prototype.close;
  WebSocket.prototype.close = function (...args) {
    setTimeout(() => { close.apply(this, args); window.hasClosed = true; }, 1000);
  };
"""


@pytest.mark.parametrize("reply", ["text", "speech"])
def test_clear_forgets_the_message_that_waits_and_the_next_one_is_sent(browser, server, reply):
    with opened(browser, server[0], script=NO_CANCEL) as page:
        choose_reply(page, reply)
        settings(page, max_tokens=400)
        say(page, "What is rain?")
        page.wait_for_selector(f"{LAST}.assistant[data-state=running]")
        say(page, "And snow?")
        page.click("#clear")
        assert page.locator("#history > li").count() == 0
        page.wait_for_selector("#stop", state="hidden")
        settings(page, max_tokens=20)
        say(page, "And hail?")
        page.wait_for_selector(DONE)
        wait_until_silent(page)
        assert page.locator("#history > li").count() == 2
        assert text_of(page, "#history > li:first-child") == "And hail?"
        assert page.locator("#error").text_content() == ""


def test_the_session_before_does_not_end_the_next_one(browser, server):
    with opened(browser, server[0], script=SLOW_CLOSE) as page:
        choose_reply(page, "text")
        say(page, "What is rain?")
        wait_until_silent(page)
        page.click("#clear")
        say(page, "And snow?")
        wait_until_silent(page)
        page.wait_for_timeout(2000)
        assert page.evaluate("window.hasClosed")
        assert page.locator("#error").text_content() == ""
        say(page, "And hail?")  # in the same session
        page.wait_for_selector("#history > li:nth-child(4)")
        wait_until_silent(page)
        assert page.locator(".divider").count() == 0
        assert page.locator("[data-state=completed], [data-state=incomplete]").count() == 2


def test_a_recording_that_is_being_made_is_given_up(browser, server):
    script = """
      navigator.mediaDevices.getUserMedia = async () => {
        const audio = new AudioContext();
        const [tone, to] = [audio.createOscillator(), audio.createMediaStreamDestination()];
        tone.connect(to);
        tone.start();
        return to.stream;
      };
    """
    with opened(browser, server[0], script=script) as page:
        choose_reply(page, "text")
        page.click("#mic")
        page.wait_for_selector("#mic[aria-pressed=true]")
        page.wait_for_timeout(300)
        page.click("#clear")
        page.wait_for_selector("#mic[aria-pressed=false]")
        assert page.locator("#history > li").count() == 0
        page.click("#mic")
        page.wait_for_selector("#mic[aria-pressed=true]")
        page.wait_for_timeout(300)
        page.click("#mic")
        wait_until_silent(page)
        assert page.locator("#history > li").count() == 2
        assert page.locator("#error").text_content() == ""
