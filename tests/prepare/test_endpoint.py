"""The chat client against a real HTTP server: what is repeated, what is kept, what is never shown."""

import logging
import time

import pytest
from prepare.chat_server import Answer, ChatServer

from lit_moss.errors import UserError
from lit_moss.prepare.endpoint import Answers, ChatEndpoint, Refused, Server

SCHEMA = {"title": "Pair", "type": "object"}
KEY = "sk-very-secret-0123456789"


@pytest.fixture
def endpoint_of(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)

    def make(server, run="run", max_requests=None, max_tokens_total=None, **options):
        told = Server("m", server.url, "TEST_KEY", **{"retries": 2, **options})
        return ChatEndpoint(told, Answers(tmp_path / "answers.sqlite"), run, max_requests, max_tokens_total)

    return make


def ask(endpoint, text="hello", max_tokens=50):
    messages = [{"role": "system", "content": "rules"}, {"role": "user", "content": text}]
    return endpoint.ask(messages, SCHEMA, max_tokens)


def test_request_has_a_strict_schema_and_the_key(endpoint_of):
    with ChatServer(lambda body, n: Answer("{}")) as server:
        reply = ask(endpoint_of(server, temperature=0.5))
    assert (reply.text, reply.finish_reason, reply.tokens, reply.cached) == ("{}", "stop", 100, False)
    body = server.bodies[0]
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "Pair", "strict": True, "schema": SCHEMA},
    }
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.5, 50)
    assert server.keys == [f"Bearer {KEY}"]


def test_fields_that_some_models_refuse_can_be_left_out(endpoint_of):
    with ChatServer(lambda body, n: Answer("{}")) as server:
        ask(
            endpoint_of(server, temperature=None, token_limit="max_completion_tokens", response_format="none")
        )
    assert set(server.bodies[0]) == {"model", "messages", "max_completion_tokens"}


def test_same_request_is_asked_once_and_another_limit_is_another_request(endpoint_of):
    with ChatServer(lambda body, n: Answer(f"answer {n}")) as server:
        first = ask(endpoint_of(server))
        again = ask(endpoint_of(server))
        longer = ask(endpoint_of(server), max_tokens=100)
        warmer = ask(endpoint_of(server, temperature=1.0))
    assert (first.text, again.text, again.cached) == ("answer 1", "answer 1", True)
    assert (longer.text, warmer.text) == ("answer 2", "answer 3")
    assert len(server.bodies) == 3


def test_busy_server_is_asked_again_after_the_time_it_says(endpoint_of):
    busy = Answer(status=429, headers={"Retry-After": "1"})
    with ChatServer(lambda body, n: busy if n == 1 else Answer("fine")) as server:
        assert ask(endpoint_of(server)).text == "fine"
    assert len(server.times) == 2
    assert server.times[1] - server.times[0] >= 1.0


@pytest.mark.parametrize("status", [500, 503])
def test_failing_server_is_asked_again(endpoint_of, status):
    with ChatServer(lambda body, n: Answer(status=status) if n == 1 else Answer("fine")) as server:
        assert ask(endpoint_of(server)).text == "fine"
    assert len(server.bodies) == 2


def test_server_that_stays_down_stops_the_run(endpoint_of):
    with (
        ChatServer(lambda body, n: Answer(status=500)) as server,
        pytest.raises(UserError, match=r"3 tries.*500"),
    ):
        ask(endpoint_of(server))
    assert len(server.bodies) == 3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refused_request_is_not_repeated(endpoint_of, status):
    with ChatServer(lambda body, n: Answer(status=status, message="too long")) as server:  # noqa: SIM117
        with pytest.raises(Refused, match=f"{status}.*too long"):
            ask(endpoint_of(server))
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("status", "expected"), [(401, "TEST_KEY"), (403, "TEST_KEY"), (404, "check base_url")]
)
def test_wrong_key_or_address_stops_the_run_at_once(endpoint_of, status, expected):
    with (
        ChatServer(lambda body, n: Answer(status=status)) as server,
        pytest.raises(UserError, match=expected),
    ):
        ask(endpoint_of(server))
    assert len(server.bodies) == 1


def test_slow_answer_is_waited_for_and_a_slower_one_is_a_timeout(endpoint_of):
    with ChatServer(lambda body, n: Answer("late", wait_sec=0.5)) as server:
        assert ask(endpoint_of(server, timeout_sec=5.0)).text == "late"
        start = time.monotonic()
        with pytest.raises(UserError, match="no connection"):
            ask(endpoint_of(server, timeout_sec=0.1, retries=1), "another")
    assert time.monotonic() - start < 3
    assert len(server.bodies) == 3


def test_what_is_no_completion_is_an_empty_answer(endpoint_of):
    with ChatServer(
        lambda body, n: Answer(raw="<html>gateway</html>" if n == 1 else '{"choices": []}')
    ) as server:
        assert ask(endpoint_of(server)).text == ""
        assert ask(endpoint_of(server), max_tokens=51).text == ""


def test_limit_on_requests_holds_over_workers_and_resumed_runs(endpoint_of):
    with ChatServer(lambda body, n: Answer("fine")) as server:
        ask(endpoint_of(server, max_requests=2), "1")
        limited = endpoint_of(server, max_requests=2)
        ask(limited, "2")
        with pytest.raises(UserError, match="max_requests is 2 and 2 are spent"):
            ask(limited, "3")
        assert ask(limited, "1").cached  # what is known costs nothing
        ask(endpoint_of(server, run="another", max_requests=2), "3")
        ask(endpoint_of(server, max_requests=3), "4")
    assert len(server.bodies) == 4


def test_limit_on_tokens(endpoint_of):
    with ChatServer(lambda body, n: Answer("fine")) as server:
        limited = endpoint_of(server, max_tokens_total=150)
        ask(limited, "1")
        ask(limited, "2")
        with pytest.raises(UserError, match="max_tokens_total is 150 and 200 are spent"):
            ask(limited, "3")


def test_key_is_in_no_error_log_or_file(endpoint_of, tmp_path, caplog, capfd):
    """The server repeats the key in its error."""
    caplog.set_level(logging.DEBUG)
    errors = []
    with ChatServer(
        lambda body, n: Answer("fine") if n == 1 else Answer(status=[400, 401, 500][n - 2])
    ) as server:
        endpoint = endpoint_of(server, retries=0)
        for limit in (50, 51, 52, 53):
            try:
                ask(endpoint, max_tokens=limit)
            except (UserError, Refused) as error:
                errors.append(f"{error} {error.__cause__} {error.__context__}")
    assert len(errors) == 3
    assert all("[key]" in error and KEY not in error for error in errors)
    written = caplog.text + "".join(capfd.readouterr())
    assert KEY not in written
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_options_refuse_keys_without_repeating_them():
    for options in ({"api_key_env": KEY}, {"base_url": f"http://user:{KEY}@host/v1"},
                    {"base_url": f"http://host/v1?key={KEY}"}):  # fmt: skip
        with pytest.raises(UserError) as error:
            Server("m", **options)
        assert KEY not in str(error.value)


def test_missing_key_of_the_public_server_is_named(monkeypatch, tmp_path):
    for name in ("TEST_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="TEST_KEY is not set"):
        ChatEndpoint(Server("m", api_key_env="TEST_KEY"), Answers(tmp_path / "a.sqlite"), "run")
