"""Handles clients that disconnect: work and streams that end with their connection."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

Result = TypeVar("Result")


class ClientLeft(Exception):  # noqa: N818 - not an error of the program
    """The client has disconnected; nobody reads a response."""


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Runs work and returns its result; cancels it if the client disconnects. Read the request's body before.

    Raises:
        ClientLeft: if the client disconnects.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for other in (task, watch):
            other.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


PING = b": ping\n\n"  # a comment, which readers of event streams ignore
PING_SEC = 15.0  # proxies close connections that are silent for 30 s or more


async def with_pings(events: AsyncGenerator[bytes], every_sec: float) -> AsyncGenerator[bytes]:
    """Yields the events, and a ping after `every_sec` seconds without one; closes `events` at the end."""
    waiting: asyncio.Task[bytes] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({waiting}, timeout=every_sec)
            if not done:
                yield PING
                continue
            try:
                event = waiting.result()
            except StopAsyncIteration:
                return
            finally:
                waiting = None
            yield event
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await events.aclose()


class EventStream(StreamingResponse):
    """Server-sent events, with time limits for a client that reads slowly or not at all.

    Args:
        events: Events to send.
        close: Called once at the end, whatever ends the stream, even before its first event.
        idle_sec: Maximum time in seconds without progress of the client.
        most_sec: Maximum total time in seconds.
    """

    def __init__(
        self, events: AsyncGenerator[bytes], close: Callable[[], None], idle_sec: float, most_sec: float
    ) -> None:
        events = with_pings(events, PING_SEC)
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events, self._close = events, close
        self._idle_sec, self._most_sec = idle_sec, most_sec

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()
            await self._events.aclose()

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._idle_sec):
                await send(message)

        try:
            async with asyncio.timeout(self._most_sec):
                await super().stream_response(send_in_time)
        except TimeoutError:
            pass  # the connection is closed without the last event, so the client notices
