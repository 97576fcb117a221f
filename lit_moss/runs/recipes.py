"""Finds, reads, merges and changes recipes (YAML files), without the command line."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_moss.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
# Locations of the recipes shipped with lit_moss: in an installed package, and in a checkout of the
# repository.
_SHIPPED = (_PACKAGE / "conf", _PACKAGE.parent / "conf")


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, as YAML requires; PyYAML would use the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def find_recipe(name: str | Path) -> Path:
    """The file that a name refers to: the path itself, or for `conf/…` the file shipped with lit_moss.

    Args:
        name: Path of a YAML, or of another file below `conf/`.

    Returns:
        The path as given if neither file exists.
    """
    path = Path(name)
    if path.parts[:1] != ("conf",) or path.exists():
        return path
    shipped = (folder.joinpath(*path.parts[1:]) for folder in _SHIPPED)
    return next((file for file in shipped if file.is_file()), path)


def read_yaml(name: str | Path) -> dict[str, Any]:
    """Content of a YAML file, found by `find_recipe`.

    Raises:
        UserError: if the file is missing, is not YAML, or is not a mapping.
    """
    try:
        content = yaml.load(find_recipe(name).read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise UserError(
            f"no configuration {name} ({error.strerror}): expected a YAML file, see conf/"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} holds {type(content).__name__}, expected keys like model:, data:, trainer:")
    return {str(key): value for key, value in content.items()}


def read_recipe(files: Sequence[str | Path]) -> dict[str, Any]:
    """Merges YAML files from left to right as `fit -c` does; `${…}` is not resolved.

    Settings added by the command line (trainer defaults, callbacks of every run) are not included.

    Raises:
        UserError: if a file is missing or not YAML.
    """
    try:
        merged = OmegaConf.create()
        for content in map(read_yaml, files):
            _drop_other_strategy(merged, OmegaConf.create(content))
            merged = OmegaConf.merge(merged, content)
    except OmegaConfBaseException as error:
        raise UserError(f"{', '.join(map(str, files))} do not merge: {error}") from error
    recipe = OmegaConf.to_container(merged, resolve=False)
    assert isinstance(recipe, dict)
    return {str(key): value for key, value in recipe.items()}


def merged(recipe: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Merges `content` into a recipe: mappings by key, lists as a whole; lists of `KEY+` are appended.

    Unlike the merge in `read_recipe`, a single entry is accepted instead of a list, as Lightning does for
    callbacks.
    """
    found = dict(recipe)
    for name, value in content.items():
        key = str(name)
        if key.endswith("+"):
            found[key[:-1]] = [*_as_list(found.get(key[:-1])), *_as_list(value)]
        elif isinstance(value, dict):
            before = found.get(key)
            found[key] = merged(before if isinstance(before, dict) else {}, value)
        else:
            found[key] = value
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def list_above(config: dict[str, Any], key: str) -> str | None:
    """The key of the list that a key (see `set_key`) passes through; None if there is none."""
    place: Any = config
    names = key.split(".")
    for i, name in enumerate(names):
        if isinstance(place, list):
            return ".".join(names[:i])
        place = place.get(name) if isinstance(place, dict) else None
    return None


def get_key(config: dict[str, Any], key: str) -> Any:
    """The value of a key, in the notation of `set_key`.

    Raises:
        UserError: if the parents of the key do not exist.
    """
    *path, last = key.split(".")
    place: Any = config
    for i, name in enumerate(path):
        place = _child(place, name, ".".join(path[: i + 1]), key)
    return _child(place, last, key, key)


def _drop_other_strategy(merged: Any, content: Any) -> None:
    """Removes options of a strategy that `content` replaces: FSDP2 rejects DeepSpeed's `config`."""
    before, after = (OmegaConf.select(c, "trainer.strategy.class_path") for c in (merged, content))
    if before and after and before != after:
        merged.trainer.strategy = None


def set_key(config: dict[str, Any], key: str, value: Any) -> None:
    """Changes a key in place.

    Examples: `model.init_args.lr`, `trainer.callbacks.StagedFreezing.init_args.stages.0.policy`. An element
    of a list is given by its index or by the last component of its class path. The last name may be new.

    Raises:
        UserError: if the parents of the key do not exist.
    """
    *path, last = key.split(".")
    place: Any = config
    value = copy.deepcopy(value)
    for i, name in enumerate(path):
        if name == "init_args" and isinstance(place, dict) and "class_path" in place:
            place.setdefault(name, {})  # a class without any
        place = _child(place, name, ".".join(path[: i + 1]), key)
    if isinstance(place, list):
        place[_index(place, last, key, key)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise UserError(f"{key}: {'.'.join(path)} is {place!r}, expected a mapping or a list")


def _child(place: Any, name: str, parent: str, key: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, name, parent, key)]
    if not isinstance(place, dict) or name not in place:
        known = ", ".join(map(str, place)) if isinstance(place, dict) else type(place).__name__
        raise UserError(f"{key}: no {parent} in the recipe, expected one of {known}")
    return place[name]


def _index(place: list[Any], name: str, parent: str, key: str) -> int:
    if name.isdigit() and int(name) < len(place):
        return int(name)
    classes = [str(e.get("class_path", "")).rpartition(".")[2] if isinstance(e, dict) else "" for e in place]
    if classes.count(name) != 1:
        named = ", ".join(c or str(i) for i, c in enumerate(classes))
        raise UserError(
            f"{key}: {parent} names {classes.count(name)} elements of the list, expected one of {named}"
        )
    return classes.index(name)
