"""Limits of a server: what a client may ask for, and what one may take from the others."""

import math
from dataclasses import dataclass

from lit_moss.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Bounds that keep one client from taking the memory or the time of the others.

    Args:
        max_sessions: Sessions at once; more are refused, none waits.
        max_turn_sec: Seconds of speech in one turn of the user.
        max_upload_bytes: Bytes of one request.
        max_new_tokens: Rows of a reply.
        idle_sec: A client that sends and reads nothing for so long is cut off, and so is a request whose body
            is not there by then.
        session_sec: Longest session.
        max_unsent_sec: Seconds of sound that are made ahead of a client that does not read; then its reply
            pauses until it does.
        max_context_rows: Rows of a conversation and the reply to it; the model's own limit holds too.
        max_kept_bytes: Memory for keys and values of closed sessions, for clients that send the whole
            conversation with each question.
        max_replies_kept: Spoken replies that chat completions can refer to by their id.

    Raises:
        UserError: for one that is not above 0, or is infinite: times are stated to clients as dates.
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
    """Refuses a limit that is no number above 0 and below infinity.

    Args:
        name: Of the setting or option, for the message.
        value: The number.

    Raises:
        UserError: if so.
    """
    if not 0 < value < math.inf:
        raise UserError(f"{name} is {value}, expected more than 0 and less than infinity")


class SessionLimit(Exception):  # noqa: N818 - not an error of the program
    """All sessions are taken."""
