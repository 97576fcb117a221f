"""The folder of a run, RUN_ROOT/NAME/RUN_NAME, and the files in it.

run.json            id of its MLflow run, and `kind` unless it is a training; makes the folder a run
config.yaml         complete resolved configuration of the latest start
checkpoints/        states and weights, see `lit_moss.runs.checkpoints`
result.json         step, and last, lowest and highest values of its metrics
predictions.jsonl   output of `predict` for its newest checkpoint
unsent_metrics.jsonl  metrics not sent to MLflow before the run ended
fit.lock            lock held by the process that trains it
fit.yaml, log.txt, lock   of a run started by a program, see `lit_moss.runs.launch`
"""

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypedDict

import yaml

from lit_moss.errors import UserError
from lit_moss.files import locked, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NOTE = "run.json"


class Result(TypedDict):
    """Result of a run.

    Attributes:
        step: Number of optimizer steps done; 0 while it runs.
        stopped: Why it ended before `trainer.max_steps`: `pruned` or `early`; otherwise None.
        run_id: Id of its MLflow run.
        metrics: Values of the last validation; None for non-finite values.
        lowest: Lowest finite values over all validations.
        highest: Highest finite values over all validations.
    """

    step: int
    stopped: str | None
    run_id: str | None
    metrics: dict[str, float | None]
    lowest: dict[str, float | None]
    highest: dict[str, float | None]


class RunFolder:
    """Files of one run.

    Args:
        path: Folder RUN_ROOT/NAME/RUN_NAME; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> "RunFolder | None":
        """The run that a checkpoint belongs to; None for a file outside of run folders."""
        run = cls(checkpoint.absolute().parent.parent)
        return run if checkpoint.absolute().parent == run.checkpoints and run.is_run() else None

    @classmethod
    def all_in(cls, folder: Path) -> "list[RunFolder]":
        """All trainings of one name, in the order in which they were started.

        Evaluations of the same name, which are marked in `run.json`, are excluded.

        Args:
            folder: Folder of the runs, RUN_ROOT/NAME.
        """
        notes = sorted(
            folder.glob(f"*/{_NOTE}"), key=lambda note: (note.stat().st_mtime_ns, note.parent.name)
        )
        return [cls(note.parent) for note in notes if "kind" not in json.loads(note.read_text())]

    # --- identity of the run --------------------------------------------------------------------------------

    def is_run(self) -> bool:
        """Whether the folder contains a run."""
        return (self.path / _NOTE).is_file()

    @property
    def mlflow_run_id(self) -> str | None:
        """Id of its MLflow run, from `run.json`.

        Raises:
            OSError: if the folder does not contain a run.
        """
        return json.loads((self.path / _NOTE).read_text())["mlflow_run_id"]

    def begin(self, mlflow_run_id: str | None, kind: str | None = None) -> None:
        """Makes the folder a run, or replaces its MLflow run.

        The file keeps the time of the first call, which determines the newest run.

        Args:
            mlflow_run_id: Id of its MLflow run.
            kind: Kind of run, such as `evaluation`; None: a training.
        """
        note = self.path / _NOTE
        before = note.stat() if note.exists() else None
        write_json(note, {"mlflow_run_id": mlflow_run_id} | ({"kind": kind} if kind else {}))
        if before is not None:
            os.utime(note, ns=(before.st_atime_ns, before.st_mtime_ns))

    def forget(self) -> None:
        """Undoes `begin`: `last` then does not select this folder."""
        (self.path / _NOTE).unlink(missing_ok=True)

    # --- configuration and results --------------------------------------------------------------------------

    @property
    def config_file(self) -> Path:
        """Path of the resolved configuration."""
        return self.path / "config.yaml"

    def config(self) -> dict[str, Any]:
        """Content of `config.yaml`.

        Raises:
            OSError: if the run has not started yet.
        """
        return yaml.safe_load(self.config_file.read_text())

    @property
    def recipe_file(self) -> Path:
        """Path of the recipe of a run started by a program."""
        return self.path / "fit.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.path / "checkpoints"

    @property
    def log_file(self) -> Path:
        """Path of the output of a run started by a program."""
        return self.path / "log.txt"

    @property
    def unsent_metrics_file(self) -> Path:
        """JSON lines `[name, value, time in ms, step]` of metrics that were not sent to MLflow."""
        return self.path / "unsent_metrics.jsonl"

    def result(self) -> Result | None:
        """Content of `result.json`; None if it does not exist yet."""
        try:
            return json.loads((self.path / "result.json").read_text())
        except (OSError, ValueError):
            return None

    def write_result(self, result: Result) -> None:
        """Writes `result.json`."""
        write_json(self.path / "result.json", result)

    def write_predictions(self, items: Sequence[Any]) -> Path:
        """Writes the output of `predict`, one JSON line per item; returns the path."""
        path = self.path / "predictions.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for item in items:
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
        return path

    # --- locks ----------------------------------------------------------------------------------------------

    def hold(self) -> Any:
        """Prevents other processes from training this run while the returned file is open.

        The lock belongs to the process: a second call in the same process succeeds.

        Raises:
            UserError: if another process holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "fit.lock").open("w")
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise UserError(
                    f"another process is training the run {self.path}: wait until it ends, or stop it, or "
                    "begin another run without --ckpt_path"
                ) from error
            except OSError:
                pass  # the file system does not support locks
        return file

    def is_held(self) -> bool:
        """Whether another process trains this run."""
        if not (self.path / "fit.lock").exists():
            return False
        try:
            self.hold().close()
        except UserError:
            return True
        return False

    def starting(self) -> AbstractContextManager[None]:
        """Lock held by a program while it runs a `fit` in this folder; other programs wait for it."""
        return locked(self.path / "lock")
