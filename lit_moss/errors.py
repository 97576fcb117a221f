"""The one exception for a user's mistake: the command line prints it as one line and exits with code 2."""

import re


class UserError(Exception):
    """Bad input. The message says what was got, what was expected, and what to do about it."""

    def __init__(self, message: str) -> None:
        # A file's name may hold bytes that are not UTF-8; terminals, MLflow and logs take none of them.
        super().__init__(message.encode("utf-8", "backslashreplace").decode("utf-8"))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its class where it has no message."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def without_secrets(text: str) -> str:
    """The text with what may be a key cut out of its addresses: user and password, and all after a `?`."""
    text = re.sub(r"://[^/?#\s'\"]*@", "://…@", text)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\"\]]*", r"\1?…", text)
