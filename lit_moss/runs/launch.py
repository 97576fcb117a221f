"""Runs started by a program: `fit` begun, continued or left alone.

`sweep` and the studies in `experiments/` use it. Each run is a process of its own: its memory is freed when
it ends, a kill ends only this run, and its recipe is in its folder, so that it can be run again by hand.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_moss.errors import UserError
from lit_moss.files import atomic_write
from lit_moss.runs.folder import Result, RunFolder

TAGS_VARIABLE = "LIT_MOSS_RUN_TAGS"  # JSON: MLflow tags of the run that is started
PARENT_VARIABLE = "LIT_MOSS_PARENT"  # id of the process that the started one must not outlive
METRICS_VARIABLE = "LIT_MOSS_METRICS"  # JSON: metrics that every validation of the run must give
SAVING_SEC = 60.0  # a run that is to end has so long for the step that it is in, and for its state


class RunError(Exception):
    """A run ended with an error; the message says which, and where its log is.

    Args:
        message: What happened.
        killed: Whether it was killed from outside (memory, a signal), so that it could be continued.
    """

    def __init__(self, message: str, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


def run_fit(
    config: Mapping[str, Any],
    folder: Path,
    tags: Mapping[str, str] | None = None,
    threads: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> Result:
    """Trains a run until it is finished and returns its result.

    A run that has reached its steps is not run again; one that was killed continues from its last checkpoint,
    in the same MLflow run. Its output goes to `log.txt` in its folder.

    Args:
        config: The whole recipe.
        folder: RUN_ROOT/NAME/RUN_NAME.
        tags: MLflow tags of the run.
        threads: OMP_NUM_THREADS of the run; None leaves it unchanged.
        variables: Added to the environment of the run, and written to no file.

    Raises:
        UserError: if the folder's run was begun with another recipe (only `trainer.max_steps` may grow).
        RunError: if it ends with an error.
    """
    environment = os.environ | {TAGS_VARIABLE: json.dumps(dict(tags or {}))} | dict(variables or {})
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    run = RunFolder(folder)
    # A process that was taken for dead may still be alive: two programs with one folder wait for each other.
    with run.starting():
        return _run_fit(dict(config), run, environment)


def _run_fit(config: dict[str, Any], run: RunFolder, environment: dict[str, str]) -> Result:
    begun = yaml.safe_load(run.recipe_file.read_text()) if run.recipe_file.exists() else None
    if begun is not None:
        _check_same(begun, config, run)
    until = time.monotonic() + SAVING_SEC + 5
    while run.is_held() and time.monotonic() < until:  # by the run of a program that was ended just now
        time.sleep(0.2)
    result = run.result()
    if result is not None and (result["step"] >= config["trainer"]["max_steps"] or result.get("stopped")):
        return result
    with atomic_write(run.recipe_file) as partial:
        partial.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    command = [sys.executable, "-m", "lit_moss", "fit", "-c", str(run.recipe_file),
               "--name", run.path.parent.name, "--run_root", str(run.path.parent.parent),
               "--run_name", run.path.name]  # fmt: skip
    if run.is_run():
        command += ["--ckpt_path", str(run)]
    environment = environment | {PARENT_VARIABLE: str(os.getpid())}
    with run.log_file.open("a") as log:
        code = _returncode(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    result = run.result()
    if code or result is None:
        lines = [x for x in run.log_file.read_text(errors="replace").splitlines() if x.strip()]
        last = lines[-1][:300] if lines else "no output"
        raise RunError(f"exit code {code}, {last} (log: {run.log_file})", killed=code < 0 or code == 143)
    return result


def _returncode(command: list[str], **options: Any) -> int:
    """Runs a process to its end; one that is left early, at Ctrl-C, gets SIGTERM and a minute.

    It has a process group of its own: Ctrl-C in a terminal would otherwise reach it too, within a step.
    `subprocess.run` would kill it a quarter of a second later.
    """
    process = subprocess.Popen(command, process_group=0, **options)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(SAVING_SEC)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def _check_same(begun: dict[str, Any], asked: dict[str, Any], run: RunFolder) -> None:
    old, new = _flat(begun), _flat(asked)
    for key in sorted(old.keys() | new.keys()):
        if key != "trainer.max_steps" and old.get(key) != new.get(key):
            raise UserError(
                f"{run} was begun with {key} {old.get(key)!r}, now it is {new.get(key)!r}: give another "
                "name, or remove the folder"
            )


def _flat(config: Any, key: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    if isinstance(config, dict):
        parts = config.items()
    elif isinstance(config, list):
        # With its class, so that a message names the callback and not only its place.
        parts = (
            (f"{i} {e.get('class_path', '')}" if isinstance(e, dict) else i, e) for i, e in enumerate(config)
        )
    else:
        return {key: config}
    flat: dict[str, Any] = {}
    for name, value in parts:
        flat |= _flat(value, f"{key}.{name}" if key else str(name))
    return flat


def end_with_parent(saving: bool = False) -> None:
    """Ends this process within a second of the sweep or study that started it.

    Otherwise, after a kill and a new start of that program, two processes would write into one folder.

    Args:
        saving: Whether it gets SIGTERM first, at which a `fit` ends after the step that it is in and writes
            its state, and a minute for it. `run_fit` waits for it.
    """
    parent = os.getppid()
    if "LOCAL_RANK" not in os.environ and parent != int(os.environ[PARENT_VARIABLE]):
        raise UserError("the process that started this run is gone")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if saving and "LOCAL_RANK" not in os.environ:  # rank 0 sends it to the others
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(SAVING_SEC)
        os._exit(1)  # as after a kill: what follows the last checkpoint is done again

    threading.Thread(target=watch, daemon=True, name="parent").start()
