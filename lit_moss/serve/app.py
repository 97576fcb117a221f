"""The server's application: all interfaces, with one engine."""

from typing import TYPE_CHECKING

from lit_moss.errors import UserError
from lit_moss.serve.api_errors import ApiError
from lit_moss.serve.context import Context

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Context", "create_app"]


def create_app(context: Context) -> "FastAPI":
    """Creates the application.

    Raises:
        UserError: if packages of the extra are missing.
    """
    try:
        from fastapi import FastAPI
        from starlette.middleware.cors import CORSMiddleware
    except ImportError as error:
        raise UserError(f"the server needs {error.name}: pip install 'lit-moss[serve]'") from error
    from lit_moss.serve.chat_completions import add_chat_completions
    from lit_moss.serve.guard import Guard
    from lit_moss.serve.page import add_page
    from lit_moss.serve.realtime import add_realtime

    app = FastAPI(title="lit_moss", docs_url=None, redoc_url=None, openapi_url=None)
    add_chat_completions(app, context)
    context.work.drains.append(add_realtime(app, context).drain)
    add_page(app, context)
    _add_operations(app, context)
    _add_error_objects(app)
    app.add_middleware(Guard, context=context)
    if context.cors_origins:  # outside of the guard: a preflight request has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(context.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return app


def _add_operations(app: "FastAPI", context: Context) -> None:
    """Adds /health and /metrics for operators; they need no key."""
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    from lit_moss.serve.metrics import render

    async def metrics(request: Request) -> Response:
        content, kind = render(context.engine, context.work.draining)
        return Response(content, headers={"content-type": kind})

    async def health(request: Request) -> Response:
        is_draining = context.work.draining
        content = {"status": "draining" if is_draining else "ok", "model": context.engine.model.name}
        return JSONResponse(content, 503 if is_draining else 200)

    app.add_route("/health", health, methods=["GET"])
    app.add_route("/metrics", metrics, methods=["GET"])


def _add_error_objects(app: "FastAPI") -> None:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body, error.status, error.headers)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        return JSONResponse(ApiError(error.status_code, message, code=code).body, error.status_code,
                            error.headers)  # fmt: skip

    async def failure(request: Request, error: Exception) -> Response:
        # The traceback goes to the server's log, not to the client.
        return JSONResponse(ApiError(500, "the server failed", "server_error").body, 500)

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, failure)
