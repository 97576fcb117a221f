"""Events waiting to be sent to one client. A single task sends them; only that task uses the socket."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from lit_moss.serve.realtime_events import Json

MAX_DELTAS = 8  # waiting; a response produces more when one was sent
# Waiting; a client that lets more accumulate is disconnected. One event may be as large as a client event.
MAX_EVENTS, MAX_CHARACTERS = 2000, 2**25


@dataclass
class _Entry:
    text: str
    response_id: str | None  # of a delta


class Outbox:
    """Queue of events.

    The number of waiting deltas is limited: their producer waits for room, so that the engine pauses the
    reply if a client does not read. Other events never wait.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Entry] = deque()
        self._deltas = self._characters = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._empty = asyncio.Event()
        self._room.set()
        self._empty.set()
        self.closed = False
        self.sent = 0
        self._sending = False

    def send(self, event: Json, response_id: str | None = None) -> None:
        """Appends an event.

        Args:
            event: The event.
            response_id: Id of its response, if it is a delta.
        """
        if self.closed:
            return
        entry = _Entry(json.dumps(event), response_id)
        self._waiting.append(entry)
        self._deltas += response_id is not None
        self._characters += len(entry.text)
        self._update()

    async def room(self) -> None:
        """Waits until another delta may be sent; `drop` and `close` end the wait."""
        await self._room.wait()

    @property
    def overflows(self) -> bool:
        """Whether too much has accumulated."""
        return len(self._waiting) > MAX_EVENTS or self._characters > MAX_CHARACTERS

    def drop(self, response_id: str) -> None:
        """Removes the deltas of a response."""
        self._waiting = deque(entry for entry in self._waiting if entry.response_id != response_id)
        self._deltas = sum(entry.response_id is not None for entry in self._waiting)
        self._characters = sum(len(entry.text) for entry in self._waiting)
        self._update()

    def close(self) -> None:
        """From now on, no events are accepted or sent."""
        self.closed = True
        self._waiting.clear()
        self._deltas = self._characters = 0
        self._update()

    async def run(self, send_text: Callable[[str], Awaitable[None]]) -> None:
        """Sends events one after the other until the outbox is closed.

        Args:
            send_text: Sends a text frame.
        """
        while not self.closed:
            await self._filled.wait()
            if self._waiting:
                entry = self._waiting.popleft()
                self._deltas -= entry.response_id is not None
                self._characters -= len(entry.text)
                self._sending = True
                await send_text(entry.text)
                self._sending = False
                self.sent += 1
                self._update()

    async def flushed(self, timeout_sec: float) -> None:
        """Waits until all events are sent, but at most `timeout_sec`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_sec)

    def _update(self) -> None:
        _set(self._filled, bool(self._waiting) or self.closed)
        _set(self._room, self._deltas < MAX_DELTAS)
        _set(self._empty, not self._waiting and not self._sending)


def _set(flag: asyncio.Event, value: bool) -> None:
    flag.set() if value else flag.clear()
