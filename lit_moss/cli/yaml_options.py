"""Options of verbs and studies that read a YAML: keys, types, defaults and help come from a dataclass.

    -c FILE           a YAML with options; several are merged from left to right
    --KEY VALUE       any key, written as in the YAML: --run_root runs
    --KEY.NAME VALUE  one entry of a mapping: --set.trainer.max_steps 20
    --print_config    print all options as YAML and exit

Modes of a command, which are not keys of the YAML, are flags with hyphens: `--retry-failed`.
"""

import argparse
import json
import re
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_moss.errors import UserError, without_secrets
from lit_moss.runs.recipes import read_recipe


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description."""


class OptionsParser(ArgumentParser):
    """Reads a dataclass from YAML files and the command line.

    Args:
        options: The dataclass; `Args:` of its docstring are the help texts.
        command: Command to show in the help, such as `python -m lit_moss sweep`.
        description: Description of the command.
        interpolate: Resolve `${key}` and `${oc.env:NAME}` in the YAML.
    """

    def __init__(
        self, options: type, command: str, description: str | None = None, interpolate: bool = True
    ) -> None:
        assert is_dataclass(options)
        usage = f"{command} -c FILE [--KEY VALUE …]"
        super().__init__(
            prog=command, usage=usage, description=description, formatter_class=_Formatter, allow_abbrev=False
        )
        self._options, self._interpolate = options, interpolate
        self._types = get_type_hints(options)
        self.add_argument(
            "-c", "--config", action="config", metavar="FILE",
            help="A YAML of the options; several are merged from left to right.",
        )  # fmt: skip
        self.add_class_arguments(options)

    def read(self, words: Sequence[str]) -> tuple[Any, Namespace]:
        """Returns the dataclass, and the flags that were added to it.

        Raises:
            UserError: one line if a file cannot be read, a key is unknown, or a value has the wrong type.
        """
        files, words = _config_files(words)
        entries, words = self._entries(words)
        content = read_recipe(files)
        for key, added in entries.items():
            given = content.get(key) or {}
            if not isinstance(given, dict):
                raise UserError(f"{key} is {given!r} in the YAML, expected {words_for(dict[str, Any])}")
            content[key] = {**given, **added}
        if self._interpolate:
            content = _resolved(content)
        if content:
            words = ["--config", json.dumps(content, default=str), *words]
        values = self.parse_args(words)
        names = {field.name for field in fields(self._options)}
        flags = Namespace(**{key: value for key, value in vars(values).items() if key not in names})
        chosen = {name: values[name] for name in names}
        for name in content.keys() & self._with_mappings():
            # jsonargparse parses strings in mappings again: a quoted "1" would become a number.
            if not any(re.match(rf"--{name}(?:[.=]|$)", word) for word in words):
                chosen[name] = content[name]
        return self._options(**chosen), flags

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends parsing with a one-line error that states what was given and what is expected."""
        raise UserError(without_secrets(self._explained(one_line(message)))) from ex

    def _with_mappings(self) -> set[str]:
        """Keys whose value may be a mapping."""
        return {
            name
            for name, kind in self._types.items()
            if dict in (get_origin(kind), *(get_origin(option) for option in get_args(kind)))
        }

    def _entries(self, words: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Entries of mappings that are given one by one, and the remaining words."""
        mappings = [name for name, kind in self._types.items() if get_origin(kind) is dict]
        entries: dict[str, dict[str, Any]] = {}
        others: list[str] = []
        remaining = list(words)
        while remaining:
            word = remaining.pop(0)
            name, joined, value = word.removeprefix("--").partition("=")
            key, _, entry = name.partition(".")
            if word.startswith("--") and entry and key in mappings:
                if not joined:
                    if not remaining:
                        raise UserError(f"{word} has no value: expected {word} VALUE")
                    value = remaining.pop(0)
                entries.setdefault(key, {})[entry] = yaml_value(name, value)
            else:
                others.append(word)
        return entries, others

    def _explained(self, message: str) -> str:
        known = ", ".join(self._types)
        unknown = re.match(r"Option '(.*?)' is not accepted|unrecognized arguments: (.*)", message)
        if unknown:
            return f"unknown option {unknown[1] or unknown[2]}, expected one of {known}"
        missing = re.match(r"the following arguments are required: (.*)|Option '(.*?)' is required", message)
        if missing:
            key = (missing[1] or missing[2]).partition(",")[0]
            return f"no {key}: give it in the YAML or as --{key}"
        wrong = re.match(r'Parser key "(.*?)":.*?(?:Given value|Got value): (.*)', message)
        if wrong and wrong[1] in self._types:
            return f"{wrong[1]} is {wrong[2]!r}, expected {words_for(self._types[wrong[1]])}"
        return message


def yaml_value(name: str, value: str) -> Any:
    """Parses a word of the command line as YAML."""
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an invalid date
        why = getattr(error, "problem", None) or one_line(str(error))
        raise UserError(
            without_secrets(
                f"--{name} is {value[:60]!r}, which is no YAML ({why}): expected a value such as 20, true or "
                "[1, 2], or text; text with such signs stands in quotes of its own"
            )
        ) from error


def one_line(message: str) -> str:
    """Removes indentation and list marks from a nested message of jsonargparse."""
    lines = [line.strip(" -") for line in message.strip().splitlines() if line.strip(" -")]
    return re.sub(r"\s+", " ", ": ".join(line.rstrip(":") for line in lines))[:600]


def words_for(kind: Any) -> str:
    """Describes a type for a message: `a whole number or null`."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path",
             types.NoneType: "null", Any: "any value"}  # fmt: skip
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(words_for, get_args(kind)))
    if get_origin(kind) is list:
        return f"a list [{words_for(get_args(kind)[0])}, …]"
    if get_origin(kind) is tuple:
        return f"a list [{', '.join(map(words_for, get_args(kind)))}]"
    if get_origin(kind) is dict:
        return "a mapping {key: value, …}"
    if is_dataclass(kind):
        return f"a mapping with {', '.join(field.name for field in fields(kind))}"
    if isinstance(kind, type) and kind not in names:
        return f"the class_path and init_args of a {kind.__name__}"
    return names.get(kind, str(kind))


def _config_files(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files given by `-c FILE`, `--config FILE` and `--config=FILE`, and the remaining words."""
    files: list[str] = []
    others: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if word in ("-c", "--config"):
            if not remaining:
                raise UserError(f"{word} has no value: expected {word} FILE.yaml")
            files.append(remaining.pop(0))
        elif word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        else:
            others.append(word)
    return files, others


def _resolved(content: dict[str, Any]) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(content), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {one_line(str(error))}") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
