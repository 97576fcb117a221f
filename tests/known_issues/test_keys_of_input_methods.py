"""The Enter that chooses a candidate of an input method sent the message in Safari, which reports the end of
the composition before the key; and the Escape that puts the candidates away ended the reply
in every browser."""

import pytest
from chat_page import LAST, choose_reply, say, settings, wait_until_silent

pytestmark = pytest.mark.nightly
KEY_OF_INPUT_METHOD = {"keyCode": 229, "bubbles": True, "cancelable": True}


def press(page, **key):
    page.locator("#text").evaluate("(box, key) => box.dispatchEvent(new KeyboardEvent('keydown', key))", key)


def test_keys_for_an_input_method_send_and_stop_nothing(page):
    choose_reply(page, "text")
    settings(page, max_tokens=150)
    page.click("#text")
    page.keyboard.type("nihao")
    for key in (KEY_OF_INPUT_METHOD, {"isComposing": True, "bubbles": True}):
        press(page, key="Enter", **key)
    page.wait_for_timeout(200)
    assert page.locator("#text").input_value() == "nihao"
    assert page.locator("#history > li").count() == 0
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{LAST}.assistant[data-state=running]")
    for key in (KEY_OF_INPUT_METHOD, {"isComposing": True, "bubbles": True}):
        press(page, key="Escape", **key)
    wait_until_silent(page)
    assert page.locator(LAST).get_attribute("data-state") != "cancelled"
    say(page, "And snow?")
    page.wait_for_selector("#history > li:nth-child(4)[data-state=running]")
    press(page, key="Escape", bubbles=True)
    page.wait_for_selector(f"{LAST}[data-state=cancelled]")
