"""Runs started by a program: a YAML read, some keys changed, `fit` begun, continued or left alone.

What `sweep` and the studies in `experiments/` stand on. A run is a process of its own: its memory goes back
when it ends, what kills it kills nothing else, and its YAML lies in its folder, to be run again by hand.
"""

import copy
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_moss.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TAGS_VARIABLE = "LIT_MOSS_RUN_TAGS"  # JSON: MLflow tags of the run that is started
PARENT_VARIABLE = "LIT_MOSS_PARENT"  # the process that a run ends with
METRICS_VARIABLE = "LIT_MOSS_METRICS"  # JSON: metrics that every validation of the run must give


class RunError(Exception):
    """A run ended with an error; says which, and where its log is.

    Args:
        message: What happened.
        killed: It was killed from outside (memory, a signal) and could go on.
    """

    def __init__(self, message: str, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


def read_yaml(name: str | Path) -> dict[str, Any]:
    """A YAML of keys.

    Raises:
        UserError: for one that is missing, no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(Path(name).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"no configuration {name} ({error.strerror}): expected a YAML file, see conf/"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} holds {type(content).__name__}, expected keys like model:, data:, trainer:")
    return {str(key): value for key, value in content.items()}


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all; NaN and infinities, which JSON has not, are refused."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def hold(folder: Path) -> Any:
    """Keeps every other process from training in a run's folder while the returned file is open.

    A lock of the process: its own second call gets it too.

    Raises:
        UserError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "fit.lock").open("w")
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(
                f"another process is training the run {folder}: wait until it ends, or stop it, or begin "
                "another run without --ckpt_path"
            ) from error
        except OSError:
            pass  # a file system without locks
    return file


def read_recipe(files: Sequence[str | Path]) -> dict[str, Any]:
    """YAMLs merged from left to right as `fit -c` does; `${…}` stays as it is.

    Raises:
        UserError: for one that is missing or no YAML.
    """
    try:
        merged = OmegaConf.create()
        for content in map(read_yaml, files):
            _leave_strategy(merged, OmegaConf.create(content))
            merged = OmegaConf.merge(merged, content)
    except OmegaConfBaseException as error:
        raise UserError(f"{', '.join(map(str, files))} do not merge: {error}") from error
    found = OmegaConf.to_container(merged, resolve=False)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _leave_strategy(merged: Any, content: Any) -> None:
    """Options of one strategy are not another's: DeepSpeed's `config` would stay beside FSDP2."""
    here, new = (OmegaConf.select(c, "trainer.strategy.class_path") for c in (merged, content))
    if here and new and here != new:
        merged.trainer.strategy = None


def set_key(config: dict[str, Any], key: str, value: Any) -> None:
    """Changes one key in place.

    `model.init_args.lr`, or `trainer.callbacks.StagedFreezing.init_args.stages.0.policy`: an element of a
    list is named by its number or by the last word of its class. The last name may be new.

    Raises:
        UserError: if what leads to the last name is not there.
    """
    *path, last = key.split(".")
    place: Any = config
    value = copy.deepcopy(value)
    for i, name in enumerate(path):
        place = _child(place, name, ".".join(path[: i + 1]), key)
    if isinstance(place, list):
        place[_index(place, last, key, key)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise UserError(f"{key}: {'.'.join(path)} is {place!r}, expected a mapping or a list")


def _child(place: Any, name: str, here: str, key: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, name, here, key)]
    if not isinstance(place, dict) or name not in place:
        known = ", ".join(map(str, place)) if isinstance(place, dict) else type(place).__name__
        raise UserError(f"{key}: no {here} in the recipe, expected one of {known}")
    return place[name]


def _index(place: list[Any], name: str, here: str, key: str) -> int:
    if name.isdigit() and int(name) < len(place):
        return int(name)
    classes = [str(e.get("class_path", "")).rpartition(".")[2] if isinstance(e, dict) else "" for e in place]
    if classes.count(name) != 1:
        named = ", ".join(c or str(i) for i, c in enumerate(classes))
        raise UserError(
            f"{key}: {here} names {classes.count(name)} elements of the list, expected one of {named}"
        )
    return classes.index(name)


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a run has come to: step (0 while it runs), stopped (pruned, early or null), run_id, metrics (of
    the last validation), and their lowest and highest values over all validations."""
    try:
        return json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None


def run_fit(
    config: Mapping[str, Any],
    folder: Path,
    tags: Mapping[str, str] | None = None,
    threads: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Brings a run to its end and returns its result.

    A run that has reached its steps is not run again; one that was killed continues from its last checkpoint,
    in the same MLflow run. Its output goes to `log.txt` in its folder.

    Args:
        config: The whole YAML.
        folder: RUN_ROOT/NAME/RUN_NAME.
        tags: MLflow tags of the run.
        threads: OMP_NUM_THREADS of the run; left as it is if None.
        variables: Added to the environment of the run, and written nowhere.

    Raises:
        UserError: if the folder's run was begun with another YAML (only `trainer.max_steps` may grow).
        RunError: if it ends with an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Whoever was taken for dead may still live: two processes in one folder wait for each other.
    with (folder / "lock").open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        environment = os.environ | {TAGS_VARIABLE: json.dumps(dict(tags or {}))} | dict(variables or {})
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        return _run_fit(dict(config), folder, environment)


def _run_fit(config: dict[str, Any], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    recipe = folder / "fit.yaml"
    if recipe.exists():
        _check_same(yaml.safe_load(recipe.read_text()), config, folder)
    done = read_result(folder)
    if done is not None and (done["step"] >= config["trainer"]["max_steps"] or done.get("stopped")):
        return done
    recipe.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    command = [sys.executable, "-m", "lit_moss", "fit", "-c", str(recipe), "--name", folder.parent.name,
               "--run_root", str(folder.parent.parent), "--run_name", folder.name]  # fmt: skip
    if (folder / "run.json").exists():
        command += ["--ckpt_path", str(folder)]
    environment = environment | {PARENT_VARIABLE: str(os.getpid())}
    log = folder / "log.txt"
    with log.open("a") as out:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
        ).returncode
    done = read_result(folder)
    if code or done is None:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1][:300] if lines else "no output"
        raise RunError(f"exit code {code}, {last} (log: {log})", killed=code < 0)
    return done


def _check_same(begun: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    old, new = _flat(begun), _flat(asked)
    for key in sorted(old.keys() | new.keys()):
        if key != "trainer.max_steps" and "PruneTrial" not in key and old.get(key) != new.get(key):
            raise UserError(
                f"{folder} was begun with {key} {old.get(key)!r}, now it is {new.get(key)!r}: give another "
                "name, or remove the folder"
            )


def _flat(config: Any, key: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    if isinstance(config, dict):
        parts = config.items()
    elif isinstance(config, list):
        # With their class, so that the callback which a sweep adds, behind all others, is known by its name.
        parts = (
            (f"{i} {e.get('class_path', '')}" if isinstance(e, dict) else i, e) for i, e in enumerate(config)
        )
    else:
        return {key: config}
    found: dict[str, Any] = {}
    for name, value in parts:
        found |= _flat(value, f"{key}.{name}" if key else str(name))
    return found


def end_with_parent() -> None:
    """A process that a sweep or study started ends within a second of it.

    Otherwise, where that is killed and begun again, two processes would write into one folder.
    """
    parent = os.getppid()
    if "LOCAL_RANK" not in os.environ and parent != int(os.environ[PARENT_VARIABLE]):
        raise UserError("the process that started this run is gone")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # as a kill: what a checkpoint holds is safe, all else is done again

    threading.Thread(target=watch, daemon=True, name="parent").start()
