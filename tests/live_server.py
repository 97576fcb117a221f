"""A server on a real socket, in a thread of the tests."""

import threading
import time
from contextlib import contextmanager

from lit_moss.serve.context import Context
from lit_moss.serve.engine import Engine
from lit_moss.serve.server import Server, bind


class Live:
    """A server that runs.

    Attributes:
        context: What it serves.
        url: http://127.0.0.1:PORT
    """

    def __init__(self, context, server, url):
        self.context, self.server, self.url = context, server, url

    @property
    def engine(self):
        return self.context.engine

    def wait_until_free(self, seconds=5.0):
        """Waits until no session is open."""
        end = time.monotonic() + seconds
        while self.engine.counts.sessions and time.monotonic() < end:
            time.sleep(0.01)
        assert self.engine.counts.sessions == 0


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
        yield Live(context, server, "http://127.0.0.1:{}".format(bound.getsockname()[1]))
    finally:
        server.stop()
        thread.join(20)
        context.engine.close()
        assert not thread.is_alive()
