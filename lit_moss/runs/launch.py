"""Starts runs from a program: begins a `fit`, continues it, or does nothing if it is finished.

Used by `sweep` and the studies in `experiments/`. Each run is a separate process: its memory is freed when it
ends, a kill ends only this run, and its recipe is in its folder, so that it can be run again by hand.
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

TAGS_VARIABLE = "LIT_MOSS_RUN_TAGS"  # JSON: MLflow tags of the started run
PARENT_VARIABLE = "LIT_MOSS_PARENT"  # id of the process that the started one must not outlive
METRICS_VARIABLE = "LIT_MOSS_METRICS"  # JSON: metrics that every validation of the run must produce
SAVING_SEC = 60.0  # time for a run to finish its current step and save its state


class RunError(Exception):
    """A run ended with an error; the message names the run and its log file.

    Args:
        message: What happened.
        killed: Whether it was killed from outside (out of memory, a signal), so that it can be continued.
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

    A run that has reached its number of steps is not run again; one that was killed continues from its last
    checkpoint, in the same MLflow run. Its output is written to `log.txt` in its folder.

    Args:
        config: The complete recipe.
        folder: Folder of the run, RUN_ROOT/NAME/RUN_NAME.
        tags: MLflow tags of the run.
        threads: OMP_NUM_THREADS of the run; None: unchanged.
        variables: Additional environment variables of the run; they are not written to any file.

    Raises:
        UserError: if the run in the folder was started with another recipe (only `trainer.max_steps` may
            grow).
        RunError: if the run ends with an error.
    """
    environment = os.environ | {TAGS_VARIABLE: json.dumps(dict(tags or {}))} | dict(variables or {})
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    run = RunFolder(folder)
    # A process assumed to be dead may still be alive: two programs with the same folder wait for each other.
    with run.starting():
        return _run_fit(dict(config), run, environment)


def _run_fit(config: dict[str, Any], run: RunFolder, environment: dict[str, str]) -> Result:
    begun = yaml.safe_load(run.recipe_file.read_text()) if run.recipe_file.exists() else None
    if begun is not None:
        _check_same(begun, config, run)
    until = time.monotonic() + SAVING_SEC + 5
    while run.is_held() and time.monotonic() < until:  # held by the run of a program that was ended just now
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
    """Runs a process until it ends; on Ctrl-C, the process gets SIGTERM and one minute to end.

    The process has its own process group: otherwise Ctrl-C in a terminal would reach it too, within a step,
    and `subprocess.run` would kill it a quarter of a second later.
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
        # Includes the class, so that messages name the callback and not only its position.
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
    """Ends this process within a second after the sweep or study that started it.

    Otherwise, after that program is killed and restarted, two processes would write into one folder.

    Args:
        saving: Send SIGTERM first, on which a `fit` ends after its current step and saves its state, and wait
            up to a minute. `run_fit` waits for it.
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
        os._exit(1)  # as after a kill: everything after the last checkpoint is recomputed

    threading.Thread(target=watch, daemon=True, name="parent").start()
