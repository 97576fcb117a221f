"""The one exception for a user's mistake: the command line prints it as one line and exits with code 2."""


class UserError(Exception):
    """Bad input. The message says what was got, what was expected, and what to do about it."""
