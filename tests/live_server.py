"""A server on a real socket, in a thread of the tests."""

import threading
import time
from contextlib import contextmanager

from lit_moss.serve.context import Context
from lit_moss.serve.engine import Engine
from lit_moss.serve.server import Server, bind
from lit_moss.serve.settings import Limits


class Live:
    """A server that runs.

    Attributes:
        context: What it serves.
        url: http://127.0.0.1:PORT
        v1: Address for clients of OpenAI's interfaces.
        ws: Address of the realtime interface.
    """

    def __init__(self, context, server, port):
        self.context, self.server = context, server
        self.url = f"http://127.0.0.1:{port}"
        self.v1, self.ws = f"{self.url}/v1", f"ws://127.0.0.1:{port}/v1/realtime"

    @property
    def engine(self):
        return self.context.engine

    @property
    def sessions(self):
        """Sessions that are open."""
        return self.engine.sessions

    def wait_for_sessions(self, count=0, seconds=5.0):
        """Waits until that many are open."""
        end = time.monotonic() + seconds
        while len(self.sessions) != count and time.monotonic() < end:
            time.sleep(0.01)
        assert len(self.sessions) == count


@contextmanager
def live_server(model, limits=None, drain_sec=5.0, **settings):
    """A `Live`, which ends with the block."""
    context = Context(Engine(model, limits), **settings)
    ready = threading.Event()
    bound = bind("127.0.0.1", 0)
    server = Server(context, drain_sec, ready.set)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield Live(context, server, bound.getsockname()[1])
    finally:
        server.stop()
        thread.join(20)
        context.engine.close()
        assert not thread.is_alive()


@contextmanager
def running(model, api_key=None, hosts=(), **limits):
    """A `Live` with limits by name."""
    with live_server(model, Limits(**limits), api_key=api_key, hosts=hosts) as live:
        yield live
