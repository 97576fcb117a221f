"""What all interfaces of a server share."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from lit_moss.serve.engine import Engine


@dataclass
class Work:
    """What a server is doing, so that it can end without cutting anyone off. For the event loop alone.

    Args:
        draining: Whether the server is about to end and takes no new work.
        requests: Requests under /v1 that are being answered.
        drains: Interfaces with connections of their own: each ends them once their replies are done, within
            that many seconds, and returns whether all ended.
    """

    draining: bool = False
    requests: int = 0
    drains: list[Callable[[float], Awaitable[bool]]] = field(default_factory=list)


@dataclass(frozen=True)
class Context:
    """What all interfaces share.

    Args:
        engine: The engine; its limits hold for all interfaces.
        api_key: Key that clients must send as `Authorization: Bearer KEY`; None asks for none.
        created: Unix time of the start, stated as the model's.
        cors_origins: Origins of other web pages that may read the answers.
        hosts: Names under which requests may ask for the server, in lower case and without port; none
            allows all.
        work: What the server is doing.
    """

    engine: Engine
    api_key: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    work: Work = field(default_factory=Work)
