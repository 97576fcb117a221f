"""What every request passes before it is read: the server's names, key, size and end.

An ASGI application around the application: it counts a request's bytes as they come, so that one that is too
large is never in memory as a whole.
"""

import hmac
import json
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_moss.serve.api_errors import ApiError, draining
from lit_moss.serve.context import Context

# A client that sends its whole body before it reads the answer sees the refusal only if the rest is read.
_READ_ON = 4


class Guard:
    """Refuses requests that must not reach the application.

    Args:
        app: The application.
        context: Key, names and limits.
    """

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app, self._context = app, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            if not _is_api(scope):
                await self._app(scope, receive, send)
                return
            self._check_key(headers)
            if self._context.work.draining:
                raise draining()
            body = _Body(receive, self._context.engine.limits.max_upload_bytes)
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

    def _check_host(self, headers: Headers) -> None:
        """A page of another name that resolves to this machine must not reach a server without a key."""
        if not self._context.hosts:
            return
        try:
            name = urlsplit(f"//{headers.get('host', '')}").hostname
        except ValueError:
            name = None
        if name not in self._context.hosts:
            expected = ", ".join(self._context.hosts)
            raise ApiError(403, f"no server of the name {name!r} here: expected one of {expected}",
                           code="unknown_host")  # fmt: skip

    def _check_key(self, headers: Headers) -> None:
        key = self._context.api_key
        if key is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            raise ApiError(
                401,
                "a wrong key, or none: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


class _Body:
    """A request's body, counted."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._bytes = receive, most, 0

    def is_too_large(self, stated: str) -> bool:
        """Whether the length that the request states is above the limit."""
        return stated.isdecimal() and int(stated) > self._most

    def error(self) -> ApiError:
        """413."""
        return ApiError(413, f"a request of more than {self._most} bytes", code="request_too_large")

    async def receive(self) -> Message:
        """The next message; raises 413 when there were too many bytes."""
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._most:
            if message.get("more_body"):
                await self.discard()
            raise self.error()
        return message

    async def discard(self) -> None:
        """Reads on, up to a few times the limit, and keeps nothing."""
        while self._bytes <= _READ_ON * self._most:
            message = await self._receive()
            self._bytes += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return


def _is_api(scope: Scope) -> bool:
    return scope["path"] == "/v1" or scope["path"].startswith("/v1/")


async def send_error(send: Send, error: ApiError) -> None:
    """Answers with an error object."""
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
