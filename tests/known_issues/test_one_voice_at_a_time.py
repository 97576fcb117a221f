"""A message that was played on the page while a live reply sounded gave two voices at once."""

import pytest
from chat_page import LAST, opened, say, settings, wait_until_silent

pytestmark = pytest.mark.nightly
# How loud the live player is: everything that goes to the loudspeaker is measured.
METER = """
  const connect = AudioNode.prototype.connect;
  AudioNode.prototype.connect = function (to, ...more) {
    if (to instanceof AudioDestinationNode) {
      const meter = this.context.createAnalyser();
      connect.call(this, meter);
      window.level = () => {
        const samples = new Float32Array(meter.fftSize);
        meter.getFloatTimeDomainData(samples);
        return Math.max(...samples.map(Math.abs));
      };
    }
    return connect.call(this, to, ...more);
  };
"""


def test_a_played_message_silences_the_reply_that_goes_on(browser, server):
    _, engine = server
    with opened(browser, server[0], script=METER) as page:
        settings(page, max_tokens=30)
        say(page, "What is rain?")
        wait_until_silent(page)
        settings(page, max_tokens=150)
        say(page, "And snow?")
        page.wait_for_selector("#history > li:nth-child(4)[data-first-sound]", timeout=30_000)
        while page.evaluate("window.level()") < 0.001:
            page.wait_for_timeout(20)
        page.click("#history > li:nth-child(2) .play")
        page.wait_for_selector("#history > li:nth-child(2) .play[aria-label=Pause]")
        page.wait_for_timeout(200)
        for _ in range(5):
            assert page.evaluate("window.level()") == 0
            page.wait_for_timeout(50)
        wait_until_silent(page)  # although nothing of it sounds
        assert page.locator(LAST).get_attribute("data-state") == "incomplete"
        assert page.locator(f"{LAST} .play").is_enabled()
        assert page.locator("#error").text_content() == ""
        # All of it stays in the conversation.
        (session,) = engine.sessions
        assert len(session.conversation.messages[3].codes(engine.model.lm.format)) == 150


def test_a_reply_that_is_played_again_while_it_still_sounds(browser, server):
    with opened(browser, server[0], script=METER) as page:
        settings(page, max_tokens=100)
        say(page, "What is rain?")
        page.wait_for_selector(
            f"{LAST}.assistant:not([data-state=running])[data-first-sound]", timeout=60_000
        )
        if page.locator("#stop").is_hidden():
            pytest.skip("the reply was made no faster than it sounds")
        page.click(f"{LAST} .play")
        page.wait_for_selector("#stop", state="hidden")
        page.wait_for_timeout(200)
        assert page.evaluate("window.level()") == 0
        assert page.locator(f"{LAST} .play").get_attribute("aria-label") == "Pause"


def test_a_reply_that_begins_to_sound_ends_the_played_message(browser, server):
    with opened(browser, server[0], script=METER) as page:
        settings(page, max_tokens=60)
        say(page, "What is rain?")
        wait_until_silent(page)
        say(page, "And snow?")
        page.wait_for_selector("#history > li:nth-child(4)")
        page.locator("#history > li:nth-child(2) .play").evaluate("button => button.click()")
        page.wait_for_selector("#history > li:nth-child(4)[data-first-sound]", timeout=30_000)
        playing = page.locator(".play[aria-label=Pause]").count()
        assert playing == 0 or page.evaluate("window.level()") == 0
