"""Defaults that apply to every run: trainer options, links between keys, callbacks.

They are part of the resolved configuration (`--print_config`, `config.yaml` in the run's folder), and a
recipe or the command line can override each of them.

jsonargparse's own links (`link_arguments`) are not used: they overwrite a value that a recipe gives for the
target, and omit the target from `--print_config` and the saved configuration. Here a missing value becomes an
interpolation, `data.init_args.seed: ${seed_everything}`, in a final configuration after the user's.
"""

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from callbacks import ExactResume, NonFiniteSteps, Progress, SkippedData
from lit_moss.cli.yaml_options import yaml_value
from lit_moss.devices import has_fast_bf16
from lit_moss.runs.recipes import find_recipe, get_key, list_above, merged, read_yaml, set_key

TRAINER_DEFAULTS = {
    "accelerator": "auto",
    "devices": 1,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # `BatchOrder` distributes the batches over ranks
}


def trainer_defaults() -> dict[str, Any]:
    """These defaults; `bf16-mixed` if it is faster on this machine, otherwise `32-true`.

    Beside an Apple GPU the CPU is used: validations sum in float64, which such GPUs lack.
    """
    accelerator = "cpu" if torch.backends.mps.is_available() else TRAINER_DEFAULTS["accelerator"]
    precision = "bf16-mixed" if has_fast_bf16() else "32-true"
    return {**TRAINER_DEFAULTS, "accelerator": accelerator, "precision": precision}


# Target below `data.init_args` -> the key it follows; only if the data class has that parameter.
LINKS = {"seed": "seed_everything", "backbone": "model.init_args.backbone"}
# Appended after the recipe's callbacks, in this order. NonFiniteSteps is last, because other callbacks drop
# gradients of frozen parameters, which must not count.
ALWAYS_ON: tuple[type[Callback], ...] = (ExactResume, Progress, SkippedData, NonFiniteSteps)
ALWAYS_ON_OUTSIDE_FIT: tuple[type[Callback], ...] = (Progress, SkippedData)


def completed(words: Sequence[str]) -> list[str]:
    """A command line whose recipe files are located (see `find_recipe`) and extended by the links and
    callbacks.

    Args:
        words: Verb, `-c FILE`, `--KEY VALUE` …, as given by the user.

    Raises:
        UserError: if a recipe cannot be read.
    """
    words = [_with_shipped_files(word) for word in words]
    if {"-h", "--help"} & {*words}:
        return words
    given, words = _Given(words), _with_changed_lists(words)
    linked = {
        target: f"${{{source}}}"
        for target, source in LINKS.items()
        if target not in given.data_keys
        and _takes(given.class_of["data"], target)
        and (source != LINKS["backbone"] or _takes(given.class_of["model"], "backbone"))
        and (source != LINKS["seed"] or given.seeded)
    }
    kinds = ALWAYS_ON if words[:1] == ["fit"] else ALWAYS_ON_OUTSIDE_FIT
    missing = [kind.__name__ for kind in kinds if kind.__name__ not in given.callbacks]
    more: dict[str, Any] = {}
    if missing:
        more["trainer"] = {"callbacks+": [{"class_path": f"callbacks.{name}"} for name in missing]}
    if linked:
        more["data"] = {"init_args": linked}
    return [*words, "--config", json.dumps(more)] if more else words


def _with_changed_lists(words: Sequence[str]) -> list[str]:
    """Replaces options that change an element of a list by the whole list, in a configuration after the
    recipes.

    Example: `--trainer.callbacks.LearningRateSchedule.init_args.warmup_steps 4`, see `set_key`. The parser
    does not support keys below a list.
    """
    recipe: dict[str, Any] = {}
    for key, value in options_of(words):
        if key in ("c", "config"):
            recipe = merged(recipe, read_yaml(value))
    kept, lists = list[str](), dict[str, Any]()
    end, is_value = 0, False  # end of the recipes' words; whether the word is the value of a removed option
    for word, after in zip(words, [*words[1:], ""], strict=True):
        key, is_joined, value = word.lstrip("-").partition("=")
        name = list_above(recipe, key) if word.startswith("--") else None
        if is_value:
            is_value = False
        elif name is not None:
            set_key(recipe, key, yaml_value(key, value if is_joined else after))
            lists[name] = get_key(recipe, name)
            is_value = not is_joined
        else:
            kept.append(word)
            if key in ("c", "config"):
                end = len(kept) + (not is_joined)
    for name, changed in lists.items():
        config: Any = changed
        for part in reversed(name.split(".")):
            config = {part: config}
        kept[end:end] = ["--config", json.dumps(config)]
    return kept


def arranged(callbacks: Sequence[Callback], verb: str) -> list[Callback]:
    """The callbacks of a run: each of the permanent ones once, NonFiniteSteps last.

    If there are several of a kind, the first one is kept, which is the recipe's.
    """
    kept: list[Callback] = []
    for callback in callbacks:
        kind = next((kind for kind in ALWAYS_ON if isinstance(callback, kind)), None)
        if kind is None or not any(isinstance(other, kind) for other in kept):
            kept.append(callback)
    if verb == "fit":
        kept += [kind() for kind in ALWAYS_ON if not any(isinstance(other, kind) for other in kept)]
    return sorted(kept, key=lambda callback: isinstance(callback, NonFiniteSteps))


def _with_shipped_files(word: str) -> str:
    """Replaces paths `conf/…` that do not exist here by those of the files shipped with lit_moss."""
    return re.sub(r"(?<![^\s=\[,'\"])conf/[\w./-]+", lambda path: str(find_recipe(path[0])), word)


class _Given:
    """What the user's files and options say about the keys that are completed.

    Attributes:
        class_of: `model` and `data` -> class path.
        data_keys: Keys given below `data.init_args`.
        callbacks: Class names of the listed callbacks.
        seeded: Whether `seed_everything` is a number, or not given and therefore the default.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.class_of = {"model": "", "data": ""}
        self.data_keys: set[str] = set()
        self.callbacks: set[str] = set()
        self.seeded = True
        for key, value in options_of(words):
            if key in ("c", "config"):
                self._add_file(read_yaml(value))
            else:
                self._add_word(key, value)

    def _add_file(self, content: Mapping[str, Any]) -> None:
        for part in self.class_of:
            options = content.get(part)
            if isinstance(options, str):
                self.class_of[part] = options
            elif isinstance(options, Mapping):
                self.class_of[part] = str(options.get("class_path") or self.class_of[part])
        data = content.get("data")
        if isinstance(data, Mapping) and isinstance(data.get("init_args"), Mapping):
            self.data_keys |= {str(key) for key in data["init_args"]}
        trainer = content.get("trainer")
        if isinstance(trainer, Mapping):
            for key in ("callbacks", "callbacks+"):
                if key in trainer:
                    self._add_callbacks(json.dumps(trainer[key], default=str), replace=key == "callbacks")
        if "seed_everything" in content:
            self.seeded = not isinstance(content["seed_everything"], bool)

    def _add_word(self, key: str, value: str) -> None:
        part = key.removesuffix(".class_path")
        if part in self.class_of:
            self.class_of[part] = value
        elif key.startswith("data."):
            self.data_keys.add(key.removeprefix("data.").removeprefix("init_args."))
        elif key in ("trainer.callbacks", "trainer.callbacks+"):
            self._add_callbacks(value, replace=key == "trainer.callbacks")
        elif key == "seed_everything":
            self.seeded = value.lower() not in ("true", "false")

    def _add_callbacks(self, text: str, replace: bool) -> None:
        names = {kind.__name__ for kind in ALWAYS_ON if re.search(rf"\b{kind.__name__}\b", text)}
        self.callbacks = names if replace else self.callbacks | names


def options_of(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(key, value) of each option of a command line, in order."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == "-c" or word.startswith("--"):
            key, is_joined, value = word.lstrip("-").partition("=")
            yield key, value if is_joined else after


def _takes(class_path: str, name: str) -> bool:
    """Whether a class has a parameter of that name, either its own or one that it passes on by `**kwargs`.

    False for a class that cannot be imported; the parser reports it later.
    """
    module, _, kind = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError, ValueError):
        return False
    for base in inspect.getmro(cls) if isinstance(cls, type) else ():
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters
            if name in parameters:
                return True
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                return False
    return False
