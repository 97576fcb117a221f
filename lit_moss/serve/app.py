"""The server: one FastAPI application on one engine."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lit_moss.errors import UserError
from lit_moss.serve.engine import Engine

if TYPE_CHECKING:
    from fastapi import FastAPI


@dataclass(frozen=True)
class Context:
    """What all interfaces share.

    Args:
        engine: The engine; its limits hold for all interfaces.
        api_key: Key that clients must send as `Authorization: Bearer KEY`; None asks for none.
        created: Unix time of the start, stated as the model's.
    """

    engine: Engine
    api_key: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))


def create_app(context: Context) -> "FastAPI":
    """The application.

    Raises:
        UserError: if the packages of the extra are missing.
    """
    try:
        from fastapi import FastAPI
    except ImportError as error:
        raise UserError("the server needs fastapi: pip install 'lit-moss[serve]'") from error
    app = FastAPI(title="lit_moss", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": context.engine.model.name}

    return app
