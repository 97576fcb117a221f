"""Checks that every request has to pass before it is read: host name, key, size, shutdown.

An ASGI application around the actual application: it counts the bytes of a request as they arrive, so that an
oversized request is never in memory as a whole.
"""

import asyncio
import contextlib
import hmac
import json
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_moss.errors import UserError
from lit_moss.serve.api_errors import ApiError, draining
from lit_moss.serve.context import Context

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# A client that sends its whole body before reading sees the error only if the rest is read.
_READ_ON = 4


class Guard:
    """Rejects requests that must not reach the application.

    Args:
        app: The application.
        context: Key, host names and limits.
    """

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app, self._context = app, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            check_host(self._context, headers)
            if not _is_api(scope):
                await self._app(scope, receive, send)
                return
            check_access(self._context, headers)
            if self._context.work.draining:
                raise draining()
            limits = self._context.engine.limits
            body = _Body(receive, limits.max_upload_bytes, limits.idle_sec)
            if body.is_too_large(headers.get("content-length", "")):
                await body.discard()
                raise body.error()
            self._context.work.requests += 1
            try:
                await self._app(scope, body.receive, send)
            finally:
                self._context.work.requests -= 1
        except ApiError as error:
            await send_error(send, error)


class _Body:
    """The body of a request, with size and time limits.

    Args:
        receive: Returns its ASGI messages.
        most: Maximum size in bytes.
        seconds: Maximum time until it has arrived completely.
    """

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._most, self._bytes = receive, most, 0
        self._seconds, self._is_whole = seconds, False
        self._end = asyncio.get_running_loop().time() + seconds

    def is_too_large(self, stated: str) -> bool:
        """Whether the stated length is above the limit."""
        return stated.isdecimal() and int(stated) > self._most

    def error(self) -> ApiError:
        """The 413 error."""
        return ApiError(413, f"a request of more than {self._most} bytes", code="request_too_large")

    async def receive(self) -> Message:
        """The next message; raises 413 if there were too many bytes, 408 if they took too long."""
        try:
            async with asyncio.timeout_at(None if self._is_whole else self._end):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"a request that is not there after {self._seconds:g} s", code="too_slow",
                           headers={"connection": "close"}) from None  # fmt: skip
        self._is_whole = not message.get("more_body")
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._most:
            if message.get("more_body"):
                await self.discard()
            raise self.error()
        return message

    async def discard(self) -> None:
        """Reads and discards further data, up to a few times the limit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._end):
                while self._bytes <= _READ_ON * self._most:
                    message = await self._receive()
                    self._bytes += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        return


def check_host(context: Context, headers: Headers) -> None:
    """Prevents pages of other names that resolve to this machine from accessing a server without a key.

    Raises:
        ApiError: 403 if the host name is not allowed.
    """
    name = _host_of(f"//{headers.get('host', '')}")
    if context.hosts and name not in context.hosts:
        expected = ", ".join(context.hosts)
        raise ApiError(403, f"no server of the name {name!r} here: expected one of {expected} (--allow-host)",
                       code="unknown_host")  # fmt: skip


def check_access(context: Context, headers: Headers, keys: Sequence[str] = ()) -> None:
    """Checks that a client may use the interfaces: if there is a key, the client must send it; without a key,
    pages of other origins are rejected, since any page in a browser could use a local server.

    Args:
        context: Key and origins.
        headers: Headers of the request.
        keys: Keys given in other ways than by a header.

    Raises:
        ApiError: 401 for a missing or wrong key, 403 for a foreign page.
    """
    key = context.api_key
    if key is not None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        keys = [*keys, *([given.strip()] if scheme.lower() == "bearer" else [])]
        if not any(hmac.compare_digest(given.encode(), key.encode()) for given in keys):
            raise ApiError(
                401, "a wrong key, or none: send it as Authorization: Bearer KEY", code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
        return
    origin = headers.get("origin")
    if origin is None or origin in context.cors_origins:
        return
    host = _host_of(origin)
    if host is None or host not in (_host_of(f"//{headers.get('host', '')}"), *LOOPBACK):
        raise ApiError(
            403, f"a page of {origin} may not use a server without a key: start it with --api-key-file, or "
            "allow the origin (--cors-origin)", code="foreign_origin",
        )  # fmt: skip


def checked_origin(option: str) -> str:
    """Normalises an origin given by --cors-origin as browsers send it: lower case, no path, no default port.

    Raises:
        UserError: if no browser would send it. `*` and `null` are returned unchanged.
    """
    if option in ("*", "null"):
        return option
    try:
        parts = urlsplit(option.lower())
        scheme, host, port = parts.scheme, parts.hostname, parts.port
        rest = (parts.path.strip("/"), parts.query, parts.fragment, parts.username)
    except ValueError:
        scheme, host, port, rest = "", None, None, ()
    if not scheme or not host or any(rest) or not option.isascii() or "*" in option:
        raise UserError(f"--cors-origin is {option!r}, expected an origin such as https://example.org")
    name = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}.get(scheme)
    return f"{scheme}://{name}" + (f":{port}" if port not in (None, usual) else "")


def checked_host(option: str) -> str:
    """Normalises a name given by --allow-host for `check_host`: lower case, no port, no brackets.

    Raises:
        UserError: if it is not a host name.
    """
    is_ipv6 = option.count(":") > 1 and not option.startswith("[")
    try:
        parts = urlsplit(f"//[{option}]" if is_ipv6 else f"//{option}")
        host, _ = parts.hostname, parts.port
        rest = (parts.path, parts.query, parts.fragment, parts.username)
    except ValueError:
        host, rest = None, ()
    if not host or any(rest) or not option.isascii() or "*" in option:
        raise UserError(f"--allow-host is {option!r}, expected a name such as example.org")
    return host


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_api(scope: Scope) -> bool:
    return scope["path"] == "/v1" or scope["path"].startswith("/v1/")


async def send_error(send: Send, error: ApiError) -> None:
    """Sends an error object as the response."""
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
