"""Limits of a server, so that a client cannot use all of its resources."""

import math
from dataclasses import dataclass

from lit_moss.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Limits that prevent one client from using the memory or the time of the others.

    Args:
        max_sessions: Maximum number of sessions; more are refused, none waits.
        max_turn_sec: Maximum length of one turn of the user, in seconds of speech.
        max_upload_bytes: Maximum size of a request in bytes.
        max_new_tokens: Maximum number of rows of a reply.
        idle_sec: Seconds after which a client that neither sends nor reads is disconnected; also the maximum
            time for the body of a request to arrive.
        session_sec: Maximum length of a session in seconds.
        max_unsent_sec: Seconds of audio to generate in advance of a client that does not read; then its reply
            is paused until it does.
        max_context_rows: Maximum number of rows of a conversation and the reply to it; the model's own limit
            also applies.
        max_kept_bytes: Memory for keys and values of closed sessions, in bytes, for clients that send the
            whole conversation with each question.
        max_replies_kept: Number of spoken replies that chat completions can reference by their id.

    Raises:
        UserError: if a limit is not positive or not finite: times are reported to clients as dates.
    """

    max_sessions: int = 8
    max_turn_sec: float = 120.0
    max_upload_bytes: int = 24 * 2**20
    max_new_tokens: int = 2000
    idle_sec: float = 300.0
    session_sec: float = 3600.0
    max_unsent_sec: float = 60.0
    max_context_rows: int = 16384
    max_kept_bytes: int = 2**30
    max_replies_kept: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_limit(name, value)


def check_limit(name: str, value: float) -> None:
    """Rejects a limit that is not positive or not finite.

    Args:
        name: Name of the setting or option, for the message.
        value: Value of the limit.

    Raises:
        UserError: if the limit is invalid.
    """
    if not 0 < value < math.inf:
        raise UserError(f"{name} is {value}, expected more than 0 and less than infinity")


class SessionLimit(Exception):  # noqa: N818 - not an error of the program
    """All sessions are in use."""
