"""State shared by all interfaces of a server."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from lit_moss.serve.engine import Engine


@dataclass
class Work:
    """Work in progress, which a shutdown of the server waits for; only used in the event loop.

    Args:
        draining: Whether the server is shutting down and accepts no new work.
        requests: Number of requests below /v1 in progress.
        drains: Functions of interfaces with their own connections: each closes its connections after their
            replies, within the given number of seconds, and returns whether all have ended."""

    draining: bool = False
    requests: int = 0
    drains: list[Callable[[float], Awaitable[bool]]] = field(default_factory=list)


@dataclass(frozen=True)
class Context:
    """State shared by all interfaces.

    Args:
        engine: The engine; its limits apply to all interfaces.
        api_key: Key that clients must send as `Authorization: Bearer KEY`; None: no key required.
        created: Unix time of the start, reported as that of the model.
        cors_origins: Origins of other web pages that may read responses.
        hosts: Host names that requests may use, in lower case and without port; empty: all.
        work: Work in progress.
    """

    engine: Engine
    api_key: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    work: Work = field(default_factory=Work)
