"""Names of data and parts that may be published: without local folders or user names."""

import getpass
import re
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from lit_moss import assets

# File names that are meaningless without the name of their folder.
_PLAIN = re.compile(
    r"(train|validation|valid|val|dev|test|heldout|manifest|documents|data|meta|text|sft|chat|checkpoints|"
    r"codec|last|best|step-\d+)([-_.]?(train|validation|heldout|\d+))?"
)
_HOMES = ("home", "Users", "root", "~")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")
_NAME = "a local folder"


def is_hub_id(name: str) -> bool:
    """Whether a name is a repository on the Hugging Face hub, `owner/name`, and not a local path."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def data_name(path: str) -> str:
    """Name of a manifest or a folder of documents: the file name without extension, preceded by the folder
    name if it is meaningless on its own (`ljspeech/train`)."""
    if path.startswith(assets.SCHEME):
        return path
    pure = _pure(path)
    name = pure.name if pure.suffix[1:].isdigit() else pure.stem  # librispeech-v1.2 keeps its version
    parent, above = pure.parent.name, pure.parent.parent.name
    is_private = parent in _HOMES or above in _HOMES or parent == _user() or parent == ".."
    if not name or name == _user():
        return _NAME
    if parent and not is_private and _PLAIN.fullmatch(name):
        return f"{parent}/{name}"
    return name


def part_name(name: str, run_root: str = "runs") -> str:
    """Name of a pretrained part or a run: `embedded:…` or hub id, or the last component of a path.

    Args:
        name: Name as in a configuration.
        run_root: Root folder of runs; names below it are not hub ids.
    """
    if name.startswith(assets.SCHEME):
        return name
    root, path = _pure(run_root), _pure(name)
    if path.is_relative_to(root):
        below = [part for part in path.relative_to(root).parts if part != "checkpoints"]
        return "/".join(below) or _NAME
    return name if is_hub_id(name) else data_name(name)


def is_private(name: str) -> bool:
    """Whether a name reveals local folders: an absolute path, or one that leaves the working directory."""
    return _pure(name).is_absolute() or name.startswith(("~", ".."))


def public_value(value: Any, run_root: str = "runs") -> str:
    """The value of a setting as text, with paths replaced by names."""
    if isinstance(value, str):
        return part_name(value, run_root) if re.search(r"[/\\]", value) else value
    if isinstance(value, dict):
        inside = (f"{key}: {public_value(item, run_root)}" for key, item in value.items() if item is not None)
        return ", ".join(inside)
    if isinstance(value, list | tuple):
        return ", ".join(public_value(item, run_root) for item in value)
    return str(value)


def _pure(path: str) -> PurePath:
    is_windows = "\\" in path or re.match(r"[A-Za-z]:", path)
    return PureWindowsPath(path) if is_windows else PurePosixPath(path)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user in the system's table, as in some containers
        return ""
