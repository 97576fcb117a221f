"""Options of how documents are made: which of them the user has set, and which values are recorded.

Documents in a folder exist already. An option that the user has set must be the one they were made with (see
`lit_moss.data.document_options`); for all others the recorded configuration states that of the documents.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lit_moss.cli.defaults import options_of
from lit_moss.cli.yaml_options import yaml_value
from lit_moss.contracts import DocumentData
from lit_moss.runs.recipes import merged, read_yaml


def mark_given(data: object, words: Sequence[str]) -> None:
    """Passes the names of the arguments that the user has set to a data module and the parts of a mixture.

    Args:
        data: The data module.
        words: The command line, with all lists complete, see `completed`.
    """
    for module, settings in _modules(data, _given(words)):
        module.given = frozenset(key.removesuffix("+") for key in settings)


def state_options(data: object, config: dict[str, Any]) -> bool:
    """Corrects a resolved `data` section in place; returns whether anything has changed.

    Args:
        data: The data module.
        config: Its `class_path` and `init_args`.
    """
    changed = False
    for module, settings in _modules(data, config):
        for key, value in module.stated_options().items():
            if key not in settings:
                continue
            changed = True
            if value is None:
                del settings[key]  # no single value is true: it is not recorded
            else:
                settings[key] = value
    return changed


def _modules(data: object, config: Any) -> Iterator[tuple[DocumentData, dict[str, Any]]]:
    """A data module and the parts of a mixture, each with its arguments in the configuration."""
    settings = config.get("init_args") if isinstance(config, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    if isinstance(data, DocumentData):
        yield data, settings
    for part, entry in zip(getattr(data, "parts", ()), settings.get("parts") or [], strict=False):
        yield from _modules(part, entry)


def _given(words: Sequence[str]) -> dict[str, Any]:
    """The `data` section of the user's files and options, without defaults."""
    recipe: dict[str, Any] = {}
    for key, value in options_of(words):
        if key in ("c", "config"):
            content = json.loads(value) if value.lstrip().startswith("{") else read_yaml(value)
            recipe = merged(recipe, content if isinstance(content.get("data"), dict) else {})
        elif key.startswith("data."):
            name = key.removeprefix("data.").removeprefix("init_args.")
            if name != "class_path" and "." not in name:
                recipe = merged(recipe, {"data": {"init_args": {name: yaml_value(key, value)}}})
    return recipe.get("data") or {}
