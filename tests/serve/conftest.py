"""A browser for the tests of the page."""

import shutil

import pytest
from chat_page import ARGUMENTS


@pytest.fixture(scope="module")
def playwright():
    if shutil.which("chromium") is None:
        pytest.skip("needs a chromium on PATH")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with api.sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright):
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
    yield browser
    browser.close()
