"""Errors of the HTTP interface: OpenAI's error object with a status, never a stack trace.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

The `openai` client raises BadRequestError for 400, AuthenticationError for 401, NotFoundError for 404 and
RateLimitError for 429, and retries 408, 409, 429 and 5xx after `retry-after` seconds.
"""

from typing import Any

INVALID = "invalid_request_error"


class ApiError(Exception):
    """A request that is rejected or cannot be answered.

    Args:
        status: HTTP status.
        message: One line: what was given and what is expected.
        kind: `type` of the error object.
        param: Path of the invalid field in the request, such as `messages[0].content`.
        code: Machine-readable name of the error.
        headers: Additional headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request is invalid."""
    return ApiError(400, message, param=param, code=code)


def server_failure(message: str) -> ApiError:
    """500: the request is valid, but answering it failed."""
    return ApiError(500, message, "server_error", code="reply_failed")


def all_sessions_taken(message: str) -> ApiError:
    """429: all sessions are in use; retry after a second."""
    return ApiError(
        429, message, "rate_limit_error", code="session_limit_reached", headers={"retry-after": "1"}
    )


def draining() -> ApiError:
    """503: the server is shutting down; behind a load balancer, a retry reaches another server."""
    message = "the server is shutting down: try again later"
    headers = {"retry-after": "1", "connection": "close"}
    return ApiError(503, message, "server_error", code="shutting_down", headers=headers)
