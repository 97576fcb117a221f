"""Finds the files that lm-eval's task YAMLs read (data, code, YAMLs), which are part of a task's identity."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml


class _Code(str):
    """A function in a Python file next to a YAML, such as `local.questions`."""


class _TaskYaml(yaml.SafeLoader):
    """Reads lm-eval's YAMLs without importing their code."""


_TaskYaml.add_constructor("!function", lambda _, node: _Code(node.value))
_READ = ("include", "dataset_path", "dataset_kwargs", "data_dir")  # keys whose values may be files


def files_of_tasks(sources: Sequence[str]) -> list[str]:
    """Existing files and folders that task YAMLs refer to.

    Files within `sources` are excluded. A YAML that cannot be read is skipped; loading the task reports it.

    Args:
        sources: YAML files, and folders that contain some.
    """
    places = [Path(source) for source in sources]
    waiting: list[Path] = []
    for place in places:
        waiting += [place] if place.is_file() else sorted(place.rglob("*.yaml"))
    found: dict[Path, None] = {}
    for file in waiting:  # the list grows by the included ones
        try:
            content = yaml.load(file.read_text(encoding="utf-8"), _TaskYaml)
        except (OSError, ValueError, yaml.YAMLError):
            continue
        for key, text in _named(content):
            for path in map(Path.resolve, _paths(key, text, file.parent)):
                if key == "include" and path not in map(Path.resolve, waiting):
                    waiting.append(path)
                if not any(path.is_relative_to(place.resolve()) for place in places):
                    found[path] = None
    return [str(path) for path in found]


def _named(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Names that a task YAML may read, each with its key in `_READ` or `!function`."""
    if isinstance(content, _Code):
        yield "!function", content
    elif isinstance(content, str) and content and key in _READ:
        yield key, content
    elif isinstance(content, list):
        for one in content:
            yield from _named(one, key)
    elif isinstance(content, dict):
        for name, one in content.items():
            yield from _named(one, key if key == "dataset_kwargs" and name != "data_dir" else name)


def _paths(key: str, text: str, folder: Path) -> list[Path]:
    """Existing paths for a name in a YAML of a folder."""
    if key == "!function":
        paths = [folder / f"{text.rpartition('.')[0].replace('.', '/')}.py"]
    elif key == "include":
        paths = [folder / text]
    elif key == "dataset_kwargs":  # also contains names of splits, which may be the names of folders
        names = [*glob.glob(text, recursive=True), *glob.glob(str(folder / text), recursive=True)]
        return [path for path in map(Path, sorted(names)) if path.is_file()]
    else:
        paths = [Path(text)]
    return [path for path in paths if os.path.exists(path)]  # unlike Path's, False for invalid paths
