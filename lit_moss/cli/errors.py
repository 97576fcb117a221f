"""One-line error messages for configuration mistakes, instead of the parser's and Lightning's longer ones."""

import argparse
import contextlib
import difflib
import importlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf.errors import OmegaConfBaseException

from lit_moss.cli.yaml_options import one_line, words_for
from lit_moss.errors import UserError, without_secrets


class OptionError(UserError):
    """A mistake in an option of a class, reported by the parser of that class.

    Args:
        key: Key of the option relative to that parser, such as `lora.rank`; "" for its options as a whole.
        problem: What was given and what is expected.
    """

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem if len(problem) <= 500 else f"{problem[:500]} …"
        super().__init__(without_secrets(f"{key} {self.problem}".strip()))


class OneLineParser(LightningArgumentParser):
    """Reports an error without the usage, which lists several hundred keys.

    A class within the configuration has its own parser, whose error reaches this method first; the enclosing
    parsers add the position.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        where = re.match(r'Parser key "(.*?)"', message)
        key = where[1] if where else ""
        inner = _first(ex, OptionError)
        if key and isinstance(inner, OptionError):
            raise OptionError(_joined(key, inner.key), inner.problem) from ex
        raise OptionError(*self._explained(key, message)) from ex

    def _explained(self, key: str, message: str) -> tuple[str, str]:
        """Key and problem from a message of jsonargparse; for an unknown message, the message itself."""
        types = self._types()
        group = re.match(r"Group '(.*?)' does not accept option '(.*?)'", message)
        if group:
            return group[1], _unknown(group[2], _below(group[1], types))
        option = re.match(
            r"Option '(.*?)' is not accepted|Subcommand '.*?' does not accept option '(.*?)'", message
        )
        if option:
            place, names = "", (option[1] or option[2]).split(".")
            while len(names) > 1 and names[0] in _below(place, types):  # trainer.max_stepz
                place = ".".join(filter(None, (place, names.pop(0))))
            problem = _unknown(names[0], _below(place, types))
            return place or ("" if self._verbs() is None else "the configuration"), problem
        # For a class that is not the first of several types, the error is only part of the message.
        option = re.search(r"^ *- (has no option .*)", message, re.MULTILINE)
        if option:
            return key, option[1]
        path = re.search(r"Problem with given class_path '(.*?)':\s*(.*)", message)
        if path:
            return key, f"names a class {path[1]!r} that is not there ({path[2]}){_like(path[1])}"
        values = re.findall(r"^.*?(?:Got value|Given value): (.*)$", message, re.MULTILINE)
        if key and values and types.get(key):
            return key, f"is {values[-1]!r}, expected {words_for(types[key])}"
        if message.startswith("unrecognized arguments"):
            return "", f"{message}, expected -c FILE or --KEY VALUE, with a key of the YAML"
        return "", one_line(message)

    def _types(self) -> dict[str, Any]:
        """Option -> its type; for a parser with verbs, the options of its first verb."""
        parser = self._verbs() or self
        return {
            action.dest: getattr(action, "_typehint", None) or action.type
            for action in parser._actions
            if action.dest.split(".")[-1] not in ("help", "print_config")
        }

    def _verbs(self) -> argparse.ArgumentParser | None:
        """The parser of the first verb; None for a parser without verbs."""
        verbs = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        return next(iter(verbs[0].values())) if verbs else None


def _first(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """The first error of a kind in the chain of causes, including the error itself."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _joined(outer: str, inner: str) -> str:
    """Joins the key of a class with the key of an option within it."""
    if not inner:
        return outer
    if outer in ("model", "data"):
        return f"{outer}.init_args.{inner}"
    # Below `trainer` it is an element of a list, or a Lightning class.
    return f"{outer}: {inner}" if outer.startswith("trainer.") else f"{outer}.{inner}"


def _below(group: str, names: Iterable[str]) -> list[str]:
    """Names one level below a group of options."""
    start = f"{group}." if group else ""
    below = (name.removeprefix(start).split(".")[0] for name in names if name.startswith(start))
    return list(dict.fromkeys(below))


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return f"has an option {name!r} but no class: expected a recipe before it, -c FILE, or a class_path"
    like = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    expected = f"did you mean {like[0]}?" if like else f"expected one of {', '.join(known)}"
    return f"has no option {name!r}, {expected}"


def _like(class_path: str) -> str:
    """`; did you mean …?` if a similar class path exists, otherwise ""."""
    module, _, name = class_path.rpartition(".")
    with contextlib.suppress(ImportError, ValueError):
        names = importlib.import_module(module)
        for like in difflib.get_close_matches(name, {*dir(names), *getattr(names, "__all__", ())}, n=1):
            return f"; did you mean {module}.{like}?"
    return ""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns errors of parsing and of building classes into a UserError.

    The parser wraps a UserError of a class being built in its own errors; errors of interpolations are not
    wrapped.
    """
    try:
        yield
    except UserError:
        raise
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {one_line(str(error))}") from error
    except MisconfigurationException as error:  # such as a missing accelerator
        raise UserError(f"the trainer cannot be made: {one_line(str(error))}") from error
    except Exception as error:
        cause = _first(error, UserError) or _missing_library(error)
        if cause is None:
            raise
        raise cause from None


def _missing_library(error: Exception) -> UserError | None:
    """The error for a class whose library is not installed, such as a logger; None for other errors."""
    problem = re.search(r"Problem with given class_path '(.*?)':\s*(.*)", str(error))
    is_missing = isinstance(_first(error, ModuleNotFoundError), ModuleNotFoundError)
    if problem is None or not (is_missing or re.search(r"Requirement '.*?' not met", problem[2])):
        return None
    return UserError(
        f"{problem[1]} needs a library that is not installed ({problem[2].strip()}): install it, or "
        "leave the class out"
    )
