"""Configurations read from files: whether they are what they should be, in one line that names the key."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
}


def check_settings(config: Any, at_least: Mapping[str, float]) -> None:
    """Checks the fields of a dataclass of sizes, whose annotations are int, float or str.

    Args:
        config: The dataclass.
        at_least: Smallest value of a field; an int that is not named here is a size, 1 or more.

    Raises:
        UserError: on another type (true and "12" are no numbers), a value that is not finite, or too small.
    """
    for field in fields(config):
        value, annotation = getattr(config, field.name), field.type
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        types, text = _KINDS[kind]
        if not isinstance(value, types) or isinstance(value, bool):
            raise UserError(f"{field.name} is {value!r}, expected {text}")
        if kind == "str":
            continue
        if not math.isfinite(value):
            raise UserError(f"{field.name} is {value!r}, expected a finite number")
        least = at_least.get(field.name, 1 if kind == "int" else -math.inf)
        if value < least:
            raise UserError(f"{field.name} is {value!r}, expected {least:g} or more")


def read_settings(path: Path) -> dict[str, Any]:
    """Content of a JSON file that is an object at its top; {} where there is no such file.

    Raises:
        UserError: if it is anything else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): get it again") from error
    if not isinstance(found, dict):
        raise UserError(
            f"{path} holds a {type(found).__name__}, expected settings by name ({{…}}): get it again"
        )
    return found
