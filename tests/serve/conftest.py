"""A browser and the page, see `tests/page_fixtures.py`."""

from page_fixtures import browser, model, page, playwright, server

__all__ = ["browser", "model", "page", "playwright", "server"]
