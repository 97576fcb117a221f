"""Checks configurations that were read from files; errors are one line and name the key."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from lit_moss.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
}


def check_settings(config: "DataclassInstance", at_least: Mapping[str, float]) -> None:
    """Checks the fields of a dataclass whose annotations are int, float, str or Literal.

    Args:
        config: The dataclass.
        at_least: Field -> minimum value. An int field not listed here must be at least 1.

    Raises:
        UserError: if a value has the wrong type (true and "12" are not numbers), is not finite, or is too
            small.
    """
    values = asdict(config)
    for field in fields(config):
        value, annotation = values[field.name], field.type
        if get_origin(annotation) is Literal:
            if value not in get_args(annotation):
                raise UserError(f"{field.name} is {value!r}, expected {' or '.join(get_args(annotation))}")
            continue
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
    """Reads a JSON file whose content is an object; {} if the file does not exist.

    Raises:
        UserError: if the content is anything else.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): get it again") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}, expected settings by name ({{…}}): get it again"
        )
    return content
