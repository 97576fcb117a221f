"""The server process: its socket, signals and shutdown.

first SIGTERM or Ctrl-C   no new requests (503, /health reports draining); running replies are finished
all done, or drain_sec    connections are closed; remaining replies are cut off
second signal             the process ends immediately
"""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from lit_moss.errors import UserError
from lit_moss.serve.app import create_app
from lit_moss.serve.context import Context

# Clients may append 15 MiB of audio to a realtime session in one event: 20 MiB in base64.
WEBSOCKET_BYTES = 24 * 2**20
KEEP_ALIVE_SEC = 75  # of idle connections; above the 60 s of common load balancers, which reuse them
CLOSE_SEC = 2  # for connections to close after draining


def bind(host: str, port: int) -> socket.socket:
    """Binds a socket to an address without listening yet, so that early connections are refused.

    Args:
        host: Host name or address of this machine.
        port: Port; 0: any free port.

    Raises:
        UserError: if the address is in use, or does not belong to this machine.
    """
    if not 0 <= port < 2**16:  # `getaddrinfo` would take it modulo 2**16
        raise UserError(f"--port is {port}, expected 0 to {2**16 - 1}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: no such address ({error})") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # despite connections of earlier servers
        bound.bind(address)
    except (OSError, OverflowError) as error:
        bound.close()
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"--host {host} --port {port} cannot be used ({why}): give another --port, or 0 for "
                        "any that is free") from error  # fmt: skip
    return bound


class Server(uvicorn.Server):
    """uvicorn with a shutdown that does not cut off clients.

    Args:
        context: State of the server.
        drain_sec: Maximum time in seconds for replies to end.
        on_ready: Called when connections are accepted.

    Attributes:
        signals: Signals received.
        was_cut: Whether something was still running after `drain_sec`.
    """

    def __init__(
        self, context: Context, drain_sec: float = 30.0, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(context), log_level="warning", access_log=False, server_header=False,
                ws_max_size=WEBSOCKET_BYTES, ws_per_message_deflate=False, timeout_keep_alive=KEEP_ALIVE_SEC,
                timeout_graceful_shutdown=CLOSE_SEC, lifespan="off", proxy_headers=False,
            )
        )  # fmt: skip
        self._context, self._drain_sec, self._on_ready = context, drain_sec, on_ready
        self._drain: asyncio.Task[None] | None = None
        self.signals: list[int] = []
        self.was_cut = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles the first signal; uvicorn's handler would close connections and raise it again."""
        self.stop()
        self.signals.append(sig)
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_DFL)

    def stop(self) -> None:
        """Starts the shutdown; may be called from any thread."""
        self._context.work.draining = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self._context.work.draining:
            self._drain = self._drain or asyncio.ensure_future(self._drained())
            self.should_exit = self.should_exit or self._drain.done()
        return await super().on_tick(counter)

    async def _drained(self) -> None:
        work, end = self._context.work, time.monotonic() + self._drain_sec
        ended = await asyncio.gather(*(drain(self._drain_sec) for drain in work.drains))
        while work.requests and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self.was_cut = bool(work.requests) or not all(ended)


def serve(context: Context, bound: socket.socket, drain_sec: float, on_ready: Callable[[], None]) -> Server:
    """Serves until a signal arrives; then closes the engine.

    Args:
        context: State of the server.
        bound: Socket, as returned by `bind`.
        drain_sec: Maximum time in seconds for replies to end, see `Server`.
        on_ready: Called when connections are accepted.

    Returns:
        The server, after it has ended.
    """
    server = Server(context, drain_sec, on_ready)
    with contextlib.closing(bound):
        try:
            context.engine.warm_up()
            server.run([bound])
        finally:
            context.engine.close()
    return server
