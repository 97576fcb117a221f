"""`--cors-origin https://x.org/` and `--allow-host x.org:443` were taken, and no request matched them."""

import pytest

from lit_moss.cli.main import main
from lit_moss.serve.guard import checked_host, checked_origin

NO_ORIGINS = (
    *("x.org", "https://", "https://x.org/page", "https://*.x.org", "https://x.org:99999", "https://["),
    *("https://bücher.de", "https://me@x.org", ""),
)
NO_HOSTS = ("https://x.org", "x.org/", "*.x.org", "x.org:99999", "[", "")


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://x.org", "https://x.org"),
        ("https://x.org/", "https://x.org"),
        ("HTTPS://X.org:443", "https://x.org"),
        ("http://x.org:80/", "http://x.org"),
        ("http://x.org:443", "http://x.org:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "*"),
        ("null", "null"),
    ],
)
def test_origins_are_as_browsers_send_them(given, sent):
    assert checked_origin(given) == sent


@pytest.mark.parametrize(
    ("given", "compared"),
    [
        ("x.org", "x.org"),
        ("X.org:443", "x.org"),
        ("10.0.0.1:8000", "10.0.0.1"),
        ("::1", "::1"),
        ("[FE80::1]:8000", "fe80::1"),
    ],
)
def test_hosts_are_as_they_are_compared(given, compared):
    assert checked_host(given) == compared


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--cors-origin", value) for value in NO_ORIGINS),
        *(("--allow-host", value) for value in NO_HOSTS),
    ],
)
def test_what_no_browser_sends_is_one_line(capsys, option, value):
    assert main(["serve", "--model", "no-such-model", "--port", "0", option, value]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {option} is {value!r}, expected ")
