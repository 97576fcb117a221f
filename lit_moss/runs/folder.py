"""The folder of a run, RUN_ROOT/NAME/RUN_NAME: which files are in it, and what they hold.

run.json            id of its MLflow run, `kind` where it is no training; its presence makes a folder a run
config.yaml         the whole resolved configuration of the latest start
checkpoints/        states and weights, see `lit_moss.runs.checkpoints`
result.json         step, last, lowest and highest values of its metrics
predictions.jsonl   what `predict` has returned for its newest checkpoint
unsent_metrics.jsonl  metrics that MLflow did not take before the run ended
fit.lock            held by the process that trains it
fit.yaml, log.txt, lock   of a run that a program started, see `lit_moss.runs.launch`
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
    """What a run has reached.

    Attributes:
        step: Optimizer steps done; 0 while it runs.
        stopped: Why it ended before `trainer.max_steps`: `pruned` or `early`; None otherwise.
        run_id: Its MLflow run.
        metrics: Values of the last validation; None where a value is not finite.
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
        path: RUN_ROOT/NAME/RUN_NAME; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> "RunFolder | None":
        """The run that a checkpoint belongs to; None for a file outside of any run's folder."""
        run = cls(checkpoint.absolute().parent.parent)
        return run if checkpoint.absolute().parent == run.checkpoints and run.is_run() else None

    @classmethod
    def all_in(cls, folder: Path) -> "list[RunFolder]":
        """All trainings of one name, in the order in which they were begun.

        Evaluations of the same name, whose notes say so, are none.

        Args:
            folder: RUN_ROOT/NAME.
        """
        notes = sorted(
            folder.glob(f"*/{_NOTE}"), key=lambda note: (note.stat().st_mtime_ns, note.parent.name)
        )
        return [cls(note.parent) for note in notes if "kind" not in json.loads(note.read_text())]

    # --- what makes it a run --------------------------------------------------------------------------------

    def is_run(self) -> bool:
        """Whether the folder is that of a run."""
        return (self.path / _NOTE).is_file()

    @property
    def mlflow_run_id(self) -> str | None:
        """Id of its MLflow run, from `run.json`.

        Raises:
            OSError: if the folder is not a run's.
        """
        return json.loads((self.path / _NOTE).read_text())["mlflow_run_id"]

    def begin(self, mlflow_run_id: str | None, kind: str | None = None) -> None:
        """Makes the folder a run, or replaces its MLflow run.

        The file keeps the time of the first call, by which the newest run is chosen.

        Args:
            mlflow_run_id: Its MLflow run.
            kind: What it is instead of a training: `evaluation`.
        """
        note = self.path / _NOTE
        before = note.stat() if note.exists() else None
        write_json(note, {"mlflow_run_id": mlflow_run_id} | ({"kind": kind} if kind else {}))
        if before is not None:
            os.utime(note, ns=(before.st_atime_ns, before.st_mtime_ns))

    def forget(self) -> None:
        """Makes the folder no run again: `last` then does not choose it."""
        (self.path / _NOTE).unlink(missing_ok=True)

    # --- configuration and results --------------------------------------------------------------------------

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    def config(self) -> dict[str, Any]:
        """Content of `config.yaml`.

        Raises:
            OSError: if the run was not begun yet.
        """
        return yaml.safe_load(self.config_file.read_text())

    @property
    def recipe_file(self) -> Path:
        """The recipe of a run that a program started."""
        return self.path / "fit.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints."""
        return self.path / "checkpoints"

    @property
    def log_file(self) -> Path:
        """Output of a run that a program started."""
        return self.path / "log.txt"

    @property
    def unsent_metrics_file(self) -> Path:
        """JSON lines `[name, value, time in ms, step]` of metrics that MLflow did not take."""
        return self.path / "unsent_metrics.jsonl"

    def result(self) -> Result | None:
        """Content of `result.json`; None if there is none yet."""
        try:
            return json.loads((self.path / "result.json").read_text())
        except (OSError, ValueError):
            return None

    def write_result(self, result: Result) -> None:
        """Writes `result.json`."""
        write_json(self.path / "result.json", result)

    def write_predictions(self, items: Sequence[Any]) -> Path:
        """Writes what `predict` returned, one JSON line an item; returns the file."""
        path = self.path / "predictions.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for item in items:
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
        return path

    # --- locks ----------------------------------------------------------------------------------------------

    def hold(self) -> Any:
        """Keeps every other process from training this run while the returned file is open.

        The lock belongs to the process: a second call in the same process gets it too.

        Raises:
            UserError: if another process holds it.
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
                pass  # a file system without locks
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
        """Held by a program that runs a `fit` in this folder; others wait for it."""
        return locked(self.path / "lock")
