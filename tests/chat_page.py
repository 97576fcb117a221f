"""The page in a browser, and a server for it, in tests."""

import contextlib

import talker
from live_server import running

from lit_moss.audio import io as audio_io

ARGUMENTS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
LAST = "#history > li:last-child"
DONE = f"{LAST}.assistant:not([data-state=running])"


@contextlib.contextmanager
def serving(model, api_key=None, **limits):
    """Address and engine of a server with the page."""
    with running(model, api_key, **limits) as live:
        yield live.url, live.engine


@contextlib.contextmanager
def opened(browser, address, script="", **options):
    """The page in a context of its own, set to greedy replies of 40 rows; nothing may fail in it unseen.

    Args:
        browser: The browser.
        address: Of the server.
        script: Runs before the page's own.
        options: Of the context.
    """
    context = browser.new_context(**options)
    context.add_init_script(script)
    page, failures = context.new_page(), []
    page.on("pageerror", lambda error: failures.append(error))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    settings(page, temperature=0, max_tokens=40)
    yield page
    context.close()
    assert not failures


def settings(page, **values):
    is_phone = page.locator("#open-settings").is_visible()
    if is_phone:
        page.click("#open-settings")
    for name, value in values.items():
        page.locator(f"[name={name}]").fill(str(value))
    if is_phone:
        page.click("#open-settings")


def choose_reply(page, modality):
    page.locator(f"[name=reply][value={modality}]").check(force=True)


def say(page, text):
    page.click("#text")
    page.keyboard.type(text)  # by the keyboard: `fill` also fills where no key arrives
    page.keyboard.press("Enter")


def wait_until_silent(page):
    page.wait_for_selector(DONE, timeout=60_000)
    page.wait_for_selector("#stop", state="hidden", timeout=60_000)


def error_with(page, words):
    page.locator("#error").filter(has_text=words).wait_for()


def text_of(page, selector=LAST):
    return page.locator(f"{selector} .text").text_content()


def question_file(folder, seconds=1.0, pitch_hz=150.0):
    """A sound file and its samples as they are in it."""
    path = folder / f"question_{pitch_hz:.0f}.wav"
    audio_io.write(path, talker.wave(seconds, pitch_hz), 24_000)
    return path, audio_io.read(path, 24_000)
