"""A browser, and a tiny model with its page; other tests have models of their own."""

import shutil

import pytest
import talker
from chat_page import ARGUMENTS, opened, serving

from lit_moss.serve.model import SpeechModel


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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SpeechModel.open(str(talker.model_folder(tmp_path_factory.mktemp("page") / "tiny")), device="cpu")


@pytest.fixture(scope="module")
def server(model):
    with serving(model) as running:
        yield running


@pytest.fixture
def page(browser, server):
    with opened(browser, server[0]) as page:
        yield page
