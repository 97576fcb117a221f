"""On the page the reason of a failed reply was replaced by its times as soon as the player had ended, and the
sound that had come before the failure could neither be played again nor saved."""

import pytest
from chat_page import LAST, opened, say, serving, settings

pytestmark = pytest.mark.nightly
FAILED = f"{LAST}.assistant[data-state=failed]"


def note_of(page):
    page.wait_for_timeout(500)  # the player has said that it ended
    return page.locator(f"{LAST} .note").text_content()


def test_a_conversation_that_is_too_long_is_said_and_stays(browser, model):
    with serving(model, max_context_rows=60) as (address, _), opened(browser, address) as page:
        say(page, "What is rain? " * 5)
        page.wait_for_selector(FAILED)
        assert "expected less than 60" in note_of(page)
        page.wait_for_selector("#stop", state="hidden")


def test_sound_before_the_failure_can_be_played_and_saved(page, server):
    _, engine = server
    settings(page, max_tokens=400)
    say(page, "What is rain?")
    page.wait_for_selector(f"{LAST}[data-first-sound]", timeout=30_000)
    for running in list(engine.rows.running):
        engine._end(running, "failed", "the device is out of memory")
    page.wait_for_selector(FAILED)
    assert note_of(page).startswith("the device is out of memory")
    page.wait_for_selector("#stop", state="hidden")  # what had come has sounded
    assert note_of(page).startswith("the device is out of memory")
    with page.expect_download() as waiting:
        page.click(f"{LAST} a.save")
    assert waiting.value.path().stat().st_size > 2000
    page.click(f"{LAST} .play")
    page.wait_for_selector(f"{LAST} .play[aria-label=Pause]")
