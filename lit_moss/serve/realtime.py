"""OpenAI's Realtime interface: the websocket `/v1/realtime`.

    realtime.py             connections, and shutdown of the server
    realtime_connection.py  a client: its events and time limits
    realtime_session.py     settings          realtime_items.py   items of the conversation
    realtime_input.py       incoming audio    turn_detection.py   start and end of speech
    realtime_response.py    a response        realtime_outbox.py  events waiting to be sent
    realtime_events.py      structure of server events

It implements a subset of the general release (names as in the package `openai` 3.57), described in
docs/serve.md.
"""

import asyncio
import threading
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from lit_moss.serve.api_errors import ApiError
from lit_moss.serve.engine import Session
from lit_moss.serve.guard import check_access, check_host
from lit_moss.serve.realtime_connection import GONE, Connection
from lit_moss.serve.realtime_events import Refused, error_event
from lit_moss.serve.settings import SessionLimit
from lit_moss.serve.turn_detection import Probabilities, load_silero

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lit_moss.serve.app import Context

PATH = "/v1/realtime"
SUBPROTOCOL = "realtime"
KEY_PROTOCOL = "openai-insecure-api-key."  # how browsers, which cannot set headers, send the key


class Realtime:
    """All connections of the interface.

    Args:
        context: Engine, key and limits.
    """

    def __init__(self, context: "Context") -> None:
        self._context = context
        self._connections: set[Connection] = set()
        self._draining = False
        self._silero: Probabilities | None = None
        self._lock = threading.Lock()

    def turn_detection_model(self) -> Probabilities:
        """The silero-vad model, opened on first use.

        Raises:
            UserError: if the package is missing.
        """
        with self._lock:
            self._silero = self._silero or load_silero()
            return self._silero

    async def connect(self, websocket: WebSocket) -> None:
        """Serves a client, if it is allowed to connect and there is room."""
        try:
            check_host(self._context, websocket.headers)
            check_access(self._context, websocket.headers, _keys_of(websocket))
        except ApiError as error:
            await websocket.send_denial_response(JSONResponse(error.body, error.status, error.headers))
            return
        offered = websocket.scope.get("subprotocols", [])
        try:
            await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
            session = await self._session_or_close(websocket)
        except GONE:
            return
        if session is None:
            return
        try:
            connection = Connection(websocket, session, self.turn_detection_model)
            self._connections.add(connection)
            try:
                await connection.run()
            finally:
                self._connections.discard(connection)
        finally:
            session.close()  # in any case: an open session would take a place for good

    async def drain(self, timeout_sec: float = 30.0) -> bool:
        """Accepts no more clients, and closes each connection after its current response, with code 1001.

        Call it before the web server's own shutdown, which closes the remaining connections.

        Args:
            timeout_sec: Maximum time to wait, in seconds.

        Returns:
            Whether all connections have ended.
        """
        self._draining = True
        for connection in list(self._connections):
            connection.drain()
        end = asyncio.get_running_loop().time() + timeout_sec
        while self._connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.05)
        return not self._connections

    async def _session_or_close(self, websocket: WebSocket) -> Session | None:
        try:
            if not self._draining:
                return self._context.engine.open_session()
            code, refused = 1013, Refused("the server is going away: try later", "server_shutting_down")
        except SessionLimit as error:
            code, refused = 1008, Refused(str(error), "session_limit_reached")
        await websocket.send_json(error_event(refused))
        await websocket.close(code, refused.code)
        return None


def _keys_of(websocket: WebSocket) -> list[str]:
    """Keys among the subprotocols that a browser offers."""
    offered = websocket.scope.get("subprotocols", [])
    return [name.removeprefix(KEY_PROTOCOL) for name in offered if name.startswith(KEY_PROTOCOL)]


def add_realtime(app: "FastAPI", context: "Context") -> Realtime:
    """Adds the websocket route to an application.

    Returns:
        The connections; call its `drain` before the server shuts down.
    """
    realtime = Realtime(context)

    @app.websocket(PATH)
    async def connect(websocket: WebSocket) -> None:
        await realtime.connect(websocket)

    return realtime
