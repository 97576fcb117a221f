"""Language models on OpenAI-compatible servers: requests, answers cached by content, a spending limit.

The client is the package `openai`: it retries requests after 408, 409, 429, 5xx or a timeout, with jitter and
following the server's `Retry-After` (up to two minutes), and no others. Everything else is done here.

    request ─ in the cache? ─ within the limit? ─ server ─ stored ─ answer
"""

import hashlib
import json
import os
import re
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lit_moss.errors import UserError

Message = dict[str, str]
_SHOWN = 300  # characters of a server's message quoted in an error
_NO_KEY = "none"  # accepted by servers without keys


class Refused(Exception):  # noqa: N818
    """The server rejected a request because of its content (400, 413, 422). It must not be repeated."""


@dataclass(frozen=True)
class Reply:
    """A model's answer.

    Args:
        text: Text of the answer; "" if there is none.
        finish_reason: `stop`, `length` if `max_tokens` cut it off, `content_filter`, …
        refusal: Text of a refusal instead of an answer in the requested format; otherwise "".
        tokens: Tokens of request and answer, as counted by the server; 0 if not stated.
        cached: Whether the answer was in the cache.
    """

    text: str
    finish_reason: str
    refusal: str = ""
    tokens: int = 0
    cached: bool = False


@dataclass(frozen=True)
class Server:
    """Connection to a server, and request options.

    Args:
        model: Name of the model.
        base_url: Address up to `/v1`; None: that of OpenAI, or of `OPENAI_BASE_URL`.
        api_key_env: Environment variable that contains the API key.
        temperature: Sampling temperature; 0: the most likely answer; None: the server's default, which some
            models require.
        token_limit: Request field with the maximum length of an answer.
        response_format: `json_schema`, or what a server without it supports.
        timeout_sec: Maximum time to wait for an answer, in seconds.
        retries: Number of retries of a request after 429, 5xx or a timeout.

    Raises:
        UserError: if the address contains credentials, or the variable's name is invalid.
    """

    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    timeout_sec: float = 120.0
    retries: int = 5

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("model is empty, expected the name of the model that the endpoint serves")
        # The value may be a key given instead of a name: it is not shown in the message.
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise UserError(
                "api_key_env is no name of an environment variable: put the key into a variable and give the "
                "variable's name"
            )
        if self.base_url is None:
            return
        address = urlsplit(self.base_url)
        if address.username or address.password or address.query:
            raise UserError(
                "base_url holds credentials or a query, expected http(s)://HOST[:PORT]/v1: put the key into "
                f"the environment variable {self.api_key_env}"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError(f"base_url is {self.base_url!r}, expected http(s)://HOST[:PORT]/v1")


class Answers:
    """Answers by the hash of their requests, and the costs of each run, in an SQLite file for all processes.

    Args:
        path: Path of the file; created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._base = sqlite3.connect(path, timeout=120, isolation_level=None, check_same_thread=False)
        self._base.execute(
            "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, reply TEXT NOT NULL)"
        )
        self._base.execute(
            "CREATE TABLE IF NOT EXISTS spent (run TEXT PRIMARY KEY, requests INTEGER, tokens INTEGER)"
        )

    def find(self, request: str) -> Reply | None:
        """The stored answer to a request, or None."""
        with self._lock:
            row = self._base.execute("SELECT reply FROM answers WHERE request = ?", (request,)).fetchone()
        return None if row is None else Reply(**json.loads(row[0]), cached=True)

    def store(self, request: str, reply: Reply) -> None:
        """Stores an answer; an existing answer to the same request is kept."""
        fields = {
            "text": reply.text,
            "finish_reason": reply.finish_reason,
            "refusal": reply.refusal,
            "tokens": reply.tokens,
        }
        with self._lock:
            self._base.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?)",
                (request, json.dumps(fields, ensure_ascii=False)),
            )

    def spend(self, run: str, requests: int = 0, tokens: int = 0) -> None:
        """Adds to the spending of a run."""
        with self._lock:
            self._base.execute(
                "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT (run) DO UPDATE SET "
                "requests = requests + excluded.requests, tokens = tokens + excluded.tokens",
                (run, requests, tokens),
            )

    def reserve(
        self, run: str, max_requests: int | None, max_tokens_total: int | None, prefix: str = ""
    ) -> None:
        """Counts a request that is about to be sent.

        Args:
            run: Run that the request belongs to.
            max_requests: Maximum number of requests, see `ChatEndpoint`.
            max_tokens_total: Maximum number of tokens, see `ChatEndpoint`.
            prefix: Prefix of the option names, see `ChatEndpoint`.

        Raises:
            UserError: if the run has reached a limit.
        """
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")  # other processes count in the same file
            try:
                row = self._base.execute(
                    "SELECT requests, tokens FROM spent WHERE run = ?", (run,)
                ).fetchone()
                requests, tokens = row or (0, 0)
                for name, spent, limit in (
                    ("max_requests", requests, max_requests),
                    ("max_tokens_total", tokens, max_tokens_total),
                ):
                    if limit is not None and spent >= limit:
                        raise UserError(
                            f"{prefix}{name} is {limit} and {spent} are spent: raise {prefix}{name} and run "
                            "the same command again; what was answered is kept"
                        )
                self._base.execute(
                    "INSERT INTO spent VALUES (?, 1, 0) "
                    "ON CONFLICT (run) DO UPDATE SET requests = requests + 1",
                    (run,),
                )
                self._base.execute("COMMIT")
            except BaseException:
                self._base.execute("ROLLBACK")
                raise


class ChatEndpoint:
    """A model on a server. Threads may share it.

    The key is read from the environment here; it is in no error message, and is stored nowhere else.

    Args:
        server: Connection and request options.
        answers: Stores the answers.
        run: Name under which spending is counted, such as the folder of the step.
        max_requests: Maximum number of requests of the run; None: unlimited. Retries after 429, 5xx and
            timeouts, which are not charged, do not count.
        max_tokens_total: Maximum number of tokens of the run; None: unlimited. Requests in progress are
            completed.
        prefix: Prefix of the names of the limits in the user's options, for messages.

    Raises:
        UserError: if `openai` is not installed, or there is no key for OpenAI's server.
    """

    def __init__(
        self,
        server: Server,
        answers: Answers,
        run: str,
        max_requests: int | None = None,
        max_tokens_total: int | None = None,
        prefix: str = "",
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "an endpoint needs the package openai: pip install 'lit-moss[prepare]'"
            ) from error
        self._openai, self._server, self._answers, self._run = openai, server, answers, run
        self._limits = (max_requests, max_tokens_total, prefix)
        self._key = os.environ.get(server.api_key_env, "").strip()
        if not self._key and server.base_url is None and not os.environ.get("OPENAI_BASE_URL"):
            raise UserError(
                f"the environment variable {server.api_key_env} is not set: expected the endpoint's key in "
                "it, or a base_url of a server without keys"
            )
        self._client = openai.OpenAI(
            api_key=self._key or _NO_KEY,
            base_url=server.base_url,
            timeout=server.timeout_sec,
            max_retries=server.retries,
        )

    def ask(self, messages: Sequence[Message], schema: dict[str, Any], max_tokens: int) -> Reply:
        """Sends a request, or returns the cached answer to the same request.

        Args:
            messages: The conversation, each with `role` and `content`.
            schema: JSON schema of the answer, with a `title`.
            max_tokens: Maximum length of the answer in tokens.

        Raises:
            Refused: if the server rejects this request.
            UserError: if the server cannot be used at all, or a limit is reached.
        """
        body = self._body(messages, schema, max_tokens)
        content = json.dumps(body, sort_keys=True, ensure_ascii=False)
        request = hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()
        known = self._answers.find(request)
        if known is not None:
            return known
        self._answers.reserve(self._run, *self._limits)
        reply = _reply(self._send(body))
        self._answers.store(request, reply)
        self._answers.spend(self._run, tokens=reply.tokens)
        return reply

    def _body(self, messages: Sequence[Message], schema: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        server = self._server
        body: dict[str, Any] = {
            "model": server.model,
            "messages": list(messages),
            server.token_limit: max_tokens,
        }
        if server.temperature is not None:
            body["temperature"] = server.temperature
        if server.response_format == "json_schema":
            named = {"name": schema["title"], "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif server.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _send(self, body: dict[str, Any]) -> Any:
        """The server's answer as JSON; None if it is not JSON.

        Errors do not chain the library's exceptions, and the key is removed from their messages.
        """
        openai = self._openai
        try:
            response = self._client.chat.completions.with_raw_response.create(**body)
        except openai.APIStatusError as error:
            status, why = error.status_code, self._without_key(error.message)
        except openai.APIConnectionError as error:  # also timeouts
            status, why = 0, self._without_key(str(error.__cause__ or error) or type(error).__name__)
        else:
            try:
                return response.http_response.json()
            except ValueError:
                return None
        if status in (400, 413, 422):
            raise Refused(f"{status}: {why}")
        where = self._client.base_url
        if status in (401, 403):
            raise UserError(f"{where} refused the key of {self._server.api_key_env} ({status}: {why})")
        if 400 <= status < 500 and status not in (408, 409, 429):
            raise UserError(
                f"{where} answered {status} ({why}): check base_url and model {self._server.model!r}"
            )
        tries = self._server.retries + 1
        raise UserError(
            f"{where} gave no answer in {tries} tries ({status or 'no connection'}: {why}): run the same "
            "command again when it does; what was answered is kept"
        )

    def _without_key(self, text: str) -> str:
        text = " ".join(text.split())
        return (text.replace(self._key, "[key]") if self._key else text)[:_SHOWN]


def _reply(content: Any) -> Reply:
    """The first choice of a completion; an empty reply if the server sends something else."""
    try:
        choice = content["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        return Reply("", "no completion")
    usage = content.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else 0
    return Reply(
        text=str(message.get("content") or ""),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        refusal=str(message.get("refusal") or ""),
        tokens=tokens if isinstance(tokens, int) else 0,
    )
