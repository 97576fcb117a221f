"""Mistakes in a configuration as one line, in place of the parser's and Lightning's longer messages."""

import contextlib
from collections.abc import Iterator
from typing import NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf.errors import OmegaConfBaseException

from lit_moss.cli.yaml_options import one_line
from lit_moss.errors import UserError


class OneLineParser(LightningArgumentParser):
    """Reports an error without the usage, which lists several hundred keys."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(one_line(message)) from ex


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns errors of parsing and of building classes into a UserError.

    The parser wraps a UserError of a class being built in errors of its own; those of interpolations come
    unwrapped.
    """
    try:
        yield
    except UserError:
        raise
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {one_line(str(error))}") from error
    except MisconfigurationException as error:  # such as a machine without the accelerator that is asked for
        raise UserError(f"the trainer cannot be made: {one_line(str(error))}") from error
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, UserError):
            raise cause from None
        raise
