"""Recipes of the study `talk`: those of conf/talk with the study's options and folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.studies.talk_options import BEFORE, CHAINS, CONF, FITS, Options
from lit_moss.evaluate.probe_codes import SHUFFLED
from lit_moss.runs.recipes import read_recipe, set_key

_CONVERSATIONS = "data.init_args.parts.SFTDataModule.init_args"  # in the recipe of sft


def recipe_of(options: Options, name: str) -> dict[str, Any]:
    """The recipe of a stage: conf/talk/NAME.yaml with the study's backbone, seed, voices and changes.

    NAME-FORM has the recipe of NAME with another form of spoken replies. Folders are those in the recipe;
    `with_folders` replaces them by the study's folders.
    """
    o = options
    name, _, form = name.partition("-")
    if name in BEFORE:
        return recipe_of(o, BEFORE[name]) | {"model": o.backbone or _backbone()}
    files = [CONF / f"prepare_{name}.yaml" if name in CHAINS else CONF / f"{name}.yaml"]
    config = read_recipe([*files, *([o.machine] if o.machine and name in FITS else [])])
    for key, value in o.set.items():
        stage, _, path = key.partition(".")
        if stage == name:
            set_key(config, path, value)
    if o.backbone:
        _set_everywhere(config, "backbone", o.backbone)
    if name in FITS:
        config["seed_everything"] = o.seed
    if name == "sft":
        set_key(config, f"{_CONVERSATIONS}.reply_form", form or o.reply_form)
    if name in CHAINS and "voices" in config["steps"]:
        voices, count, key = {
            "conversations": (o.user_voices, o.voices, "user_voices"),
            "questions": (o.heldout_voices, o.heldout_voice, "voices"),
        }[name]
        config["steps"]["voices"][key] = voices
        if not voices or not count:
            del config["steps"]["voices"]
    return config


def with_folders(
    recipe: dict[str, Any], options: Options, name: str, fits: Mapping[str, Path]
) -> dict[str, Any]:
    """A recipe with the study's folders in place of those of conf/talk.

    Args:
        recipe: The recipe.
        options: Options of the study.
        name: Name of the stage.
        fits: Folder of each fit, by name.
    """
    names = {"data/talk/model": str(options.model_of(name.partition("-")[2]))}
    names |= {"data/talk": str(options.folder)}
    names |= {f"runs/talk_{fit}": str(folder) for fit, folder in fits.items()}
    return _replaced(recipe, names)


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _replaced(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, names) for v in value]
    if isinstance(value, str):
        shuffled = SHUFFLED if value.startswith(SHUFFLED) else ""  # codes of the control of `probe`
        path = value.removeprefix(shuffled)
        for name, folder in names.items():
            if path == name or path.startswith(f"{name}/"):
                return shuffled + folder + path.removeprefix(name)
    return value


def _backbone() -> str:
    """Backbone of the recipes."""
    return read_recipe([CONF / "stage1.yaml"])["model"]["init_args"]["backbone"]


def _set_everywhere(value: Any, key: str, new: Any) -> None:
    """Sets a key wherever a recipe has it, except where its value refers to another key."""
    if isinstance(value, dict):
        for name, content in value.items():
            if name == key and "${" not in str(content):
                value[name] = new
            else:
                _set_everywhere(content, key, new)
    elif isinstance(value, list):
        for content in value:
            _set_everywhere(content, key, new)
