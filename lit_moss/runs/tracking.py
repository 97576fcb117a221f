"""A Lightning logger that records a run in MLflow; a resumed run continues the same MLflow run.

Differences to Lightning's own `MLFlowLogger`:
  * The run id is in every checkpoint. A resumed run continues it, and does not send a metric again for a step
    that already has it: after `kill -9` the last steps are recomputed, with the same values.
  * A separate thread sends the metrics: an unreachable tracking server delays the record, never the training.
  * There are methods for Git state, versions, the resolved configuration, figures, audio and tables.
"""

import json
import logging
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from lit_moss.audio import io as audio_io
from lit_moss.errors import UserError, first_line
from lit_moss.runs.checkpoints import newest_step
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.launch import TAGS_VARIABLE
from lit_moss.runs.mlflow_access import (
    Sender,
    find_run,
    flat_params,
    last_steps,
    mlflow_errors,
    mlflow_name,
    open_client,
    tracking_uri,
    without_password,
)
from lit_moss.runs.provenance import provenance

_FOLDER = "run_folder"  # tag: the folder in which the run was last trained

# Options besides the model's that determine what a step computes, and may change on a resume.
_OF_STEPS = (
    "data.init_args.batch_size",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
)


class Tracker(Logger):
    """One MLflow run for one `fit`.

    Args:
        name: MLflow experiment.
        version: Name of the run; its files are in `save_dir/name/version`.
        save_dir: Root folder of all runs.
        run_id: MLflow run to continue. None: a new one is created; also if the database does not contain that
            run (a run folder from another machine, a deleted run).
        tags: Additional tags of a new MLflow run.
        system_metrics: Record the load and memory of the machine.
        flush_sec: Maximum delay before a metric is sent, in seconds.
        give_up_sec: Time to wait for an unresponsive tracking server at the end of a run, in seconds. Unsent
            metrics are then written to `unsent_metrics.jsonl` in the run's folder.
        kind: Kind of run, see `RunFolder.begin`.
    """

    def __init__(
        self,
        name: str,
        version: str,
        save_dir: str = "runs",
        run_id: str | None = None,
        system_metrics: bool = True,
        flush_sec: float = 2.0,
        give_up_sec: float = 120.0,
        tags: Mapping[str, str] | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__()
        self._tags, self._kind = dict(tags or {}), kind
        self._began_folder = False  # whether this tracker has written `run.json`
        self._run_id_before: str | None = None  # what it contained before
        self._from_step = 0
        self._settings: dict[str, str] = {}
        self._rules: set[str] = set()
        self._found: tuple[str, int | None] | None = None  # status and end of the continued run
        self._name, self._version, self._save_dir = name, version, save_dir
        self._run_id, self._give_up_sec = run_id, give_up_sec
        self._client: Any = None
        self._last_step: dict[str, int] = {}
        self._sender = Sender(flush_sec)
        self._with_system_metrics = system_metrics
        self._system_metrics: Any = None

    @property
    @override
    def name(self) -> str:
        return self._name

    @property
    @override
    def version(self) -> str:
        return self._version

    @property
    @override
    def save_dir(self) -> str:
        return self._save_dir

    @property
    def place(self) -> tuple[str, str, str]:
        """Root folder of all runs, name of the runs, name of this run."""
        return self._save_dir, self._name, self._version

    @place.setter
    def place(self, place: tuple[str, str, str]) -> None:
        self._save_dir, self._name, self._version = place

    @property
    def run_dir(self) -> Path:
        """Folder of this run's files; Lightning puts `checkpoints/` into it."""
        return Path(self._save_dir) / self._name / self._version

    @property
    def folder(self) -> RunFolder:
        """The run's folder, as a `RunFolder`."""
        return RunFolder(self.run_dir)

    @property
    def run_id(self) -> str | None:
        """MLflow run id; None on ranks other than 0 and before the run exists."""
        return self._run_id

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `MlflowClient`; the first call creates or continues the MLflow run."""
        if self._client is None:
            with mlflow_errors():
                client = open_client()
                run_id = self._run_id = self._continued(client) or self._create(client)
            self._client = client
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._begin_folder()
            self._sender.start(lambda batch: client.log_batch(run_id, metrics=batch))
            if self._with_system_metrics:
                self._system_metrics = _start_system_metrics(self._run_id)
        return self._client

    def resume_from(
        self,
        step: int,
        params: Mapping[str, Any],
        only_at_start: Collection[str],
        rules: Collection[str] = (),
    ) -> None:
        """Declares the step and the settings with which a run is resumed; call it before the start.

        If the settings differ from the recorded ones and later steps are already recorded, the continuation
        is recorded in a new MLflow run.

        Args:
            step: Number of optimizer steps done.
            params: The resolved configuration.
            only_at_start: Names of settings that have no effect on a resumed run.
            rules: Class names of the callbacks that determine what is trained and at which rate.
        """
        self._from_step = step
        self._rules = {*rules}
        self._settings = {k: v for k, v in self._deciding(params).items() if k not in only_at_start}

    def _deciding(self, config: Mapping[str, Any]) -> dict[str, str]:
        """The settings that determine what a step computes: those of the model, `_OF_STEPS` and the
        `rules`."""
        found = {
            key: value
            for key, value in flat_params(config).items()
            if key.startswith("model.init_args.") or key in _OF_STEPS
        }
        for callback in (config.get("trainer") or {}).get("callbacks") or []:
            name = str(callback["class_path"]).rpartition(".")[2]
            if name in self._rules:
                options = callback.get("init_args") or {}
                found |= {f"{name}.{key}": str(value) for key, value in options.items()}
        return found

    def _begin_folder(self) -> None:
        before = self.folder.mlflow_run_id if self.folder.is_run() else None
        if before is None or before != self._run_id:
            self._began_folder, self._run_id_before = True, before
            self.folder.begin(self._run_id, self._kind)

    @rank_zero_only
    def abandon(self) -> None:
        """Call it if a start fails before its first step: closes the MLflow run and restores the folder.

        A new folder is then no longer a run, so that `last` does not select it.
        """
        self.finalize("failed")
        self._restore_status()
        if self._began_folder and self._run_id_before is None:
            self.folder.forget()
        elif self._began_folder:
            self._run_id = self._run_id_before
            self.folder.begin(self._run_id, self._kind)

    @rank_zero_only
    def leave(self) -> None:
        """Stops using a run without changing its status, because a sweep that is only inspected may be
        running."""
        if self._found is None:  # a new run
            self.finalize("interrupted")
            return
        self._sender.stop(self._give_up_sec)
        self._client = None
        self._restore_status()

    def _restore_status(self) -> None:
        """Restores status and end time of a continued run to which nothing was added."""
        if self._found is None:
            return
        status, end_time = self._found
        try:
            if status == "RUNNING":  # killed, or in use by another process
                open_client().update_run(self._run_id, status=status)
            else:
                open_client().set_terminated(self._run_id, status, end_time)
        except Exception as error:
            rank_zero_warn(f"the MLflow run's status is not restored: {first_line(error)}")

    def _continued(self, client: Any) -> str | None:
        """Id of the run to continue, which is set to running; None if there is none."""
        if self._run_id is None:
            return None
        run = find_run(client, self._run_id)
        if run is None:
            print(
                f"MLflow at {without_password(tracking_uri())} has no run {self._run_id}, or it was deleted: "
                "recording continues in a new MLflow run",
                file=sys.stderr,
            )
            self._tags = {"continues_run": self._run_id} | self._tags
            return None
        other = Path(run.data.tags.get(_FOLDER, self.run_dir))
        if self._is_behind(RunFolder(other)):
            print(
                f"{other} has continued the run that {self.run_dir} is a copy of: this one is recorded "
                "in a new MLflow run",
                file=sys.stderr,
            )
            self._tags = {"forked_from": f"run {self._run_id}, {other}"} | self._tags
            return None
        last_step = last_steps(client, self._run_id)
        if self._repeats_differently(last_step):
            print(
                f"MLflow's run {self._run_id} has steps after {self._from_step}, trained with other "
                "settings: what follows is recorded in a new MLflow run",
                file=sys.stderr,
            )
            if run.info.status == "RUNNING":  # killed
                client.update_run(self._run_id, status="KILLED")
            self._tags = {"forked_from": f"run {self._run_id}, step {self._from_step}"} | self._tags
            return None
        client.set_tag(self._run_id, _FOLDER, str(self.run_dir.resolve()))
        self._found = (run.info.status, run.info.end_time)
        client.update_run(self._run_id, status="RUNNING")
        self._last_step = last_step
        return self._run_id

    def _repeats_differently(self, last_step: Mapping[str, int]) -> bool:
        """Whether recorded steps are trained again with other settings, such as a changed rate after a
        kill."""
        if not self.folder.config_file.is_file() or all(
            step <= self._from_step for name, step in last_step.items() if not name.startswith("system/")
        ):
            return False
        known = self._deciding(self.folder.config())
        both = ((known[k], v) for k, v in self._settings.items() if k in known)
        return any(old != new and os.sep not in old + new for old, new in both)  # folders may have moved

    def _is_behind(self, other: RunFolder) -> bool:
        """Whether another folder, a copy of this one or its original, has the same run at a later step."""
        try:
            same = other.mlflow_run_id == self._run_id and not other.path.samefile(self.run_dir)
        except (OSError, ValueError, KeyError):
            return False
        return same and newest_step(other) > newest_step(self.folder)

    def _create(self, client: Any) -> str:
        experiment = client.get_experiment_by_name(self._name)
        if experiment and experiment.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {self._name!r} was deleted: restore it with `mlflow experiments "
                f"restore --experiment-id {experiment.experiment_id}`, or begin a run with another --name"
            )
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(
                self._name, tags={"mlflow.experimentKind": "custom_model_development"}
            )
        )
        tags = provenance() | json.loads(os.environ.get(TAGS_VARIABLE, "{}")) | self._tags
        tags[_FOLDER] = str(self.run_dir.resolve())
        return client.create_run(experiment_id, run_name=self._version, tags=tags).info.run_id

    @override
    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, only_at_start: Collection[str] = (), **kwargs: Any
    ) -> None:
        """Logs the parameters of the run, with nested keys joined by dots.

        A logged parameter keeps its first value (a rule of MLflow); a change becomes a tag, `old -> new`.

        Args:
            params: The resolved configuration.
            only_at_start: Names of parameters without effect on a resumed run: changes are not recorded.
        """
        from mlflow.entities import Param

        client = self.experiment
        data = client.get_run(self._run_id).data
        known = data.params
        flat = flat_params(params)
        new = [Param(key, value) for key, value in flat.items() if key not in known]
        for start in range(0, len(new), 100):  # MLflow accepts 100 per call
            client.log_batch(self._run_id, params=new[start : start + 100])
        earlier = {k: data.tags.get(mlflow_name(f"resumed_with.{k}"), known[k]) for k in flat if k in known}
        changed = {k: (old, flat[k]) for k, old in earlier.items() if old.rpartition(" -> ")[2] != flat[k]}
        for key in changed.keys() & set(only_at_start):
            old, now = changed.pop(key)
            if "." in key or key == "seed_everything":
                rank_zero_warn(f"{key} {old} -> {now} has no effect on a resumed run; it is not recorded")
        if changed:
            self.set_tags({f"resumed_with.{k}": f"{old} -> {now}" for k, (old, now) in changed.items()})

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queues `stage/name` values of one optimizer step."""
        from mlflow.entities import Metric

        if step is None:
            raise ValueError(f"metrics {sorted(metrics)} without a step")
        self.experiment  # noqa: B018 - creates the run, and reads the steps already logged
        now_ms = int(time.time() * 1000)
        for key, value in metrics.items():
            name = mlflow_name(key)
            if key != "epoch" and step > self._last_step.get(name, -1):
                self._last_step[name] = step
                self._sender.put(Metric(name, float(value), now_ms, step))

    @rank_zero_only
    def flush(self, wait_sec: float = 5.0) -> bool:
        """Waits until all queued metrics are sent, but at most `wait_sec` seconds.

        Metrics of a checkpoint must not be lost by a kill: a resumed run does not recompute them.
        """
        return self._sender.flush(wait_sec)

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run; later values replace earlier ones."""
        for key, value in tags.items():
            self.experiment.set_tag(self._run_id, mlflow_name(key), str(value)[:5000])

    @rank_zero_only
    def log_text(self, text: str, name: str) -> None:
        """Logs a text file as an artifact of the run."""
        self._artifact(lambda client: client.log_text(self._run_id, text, name), name)

    @rank_zero_only
    def log_folder(self, folder: Path, name: str) -> None:
        """Logs all files of a folder as artifacts below `name`."""
        self._artifact(lambda client: client.log_artifacts(self._run_id, str(folder), name), name)

    @rank_zero_only
    def log_figure(self, figure: Any, name: str) -> None:
        """Logs a matplotlib figure as PNG and closes it."""
        import matplotlib.pyplot as plt

        self._artifact(lambda client: client.log_figure(self._run_id, figure, name), name)
        plt.close(figure)

    @rank_zero_only
    def log_table(self, columns: dict[str, list[Any]], name: str) -> None:
        """Logs a table, which MLflow's UI shows and compares across runs.

        Rows are appended to an existing table of the same name.
        """
        self._artifact(lambda client: client.log_table(self._run_id, columns, name), name)

    @rank_zero_only
    def log_audio(self, wave_T: Any, rate_hz: int, name: str) -> None:
        """Logs audio samples (T,) in [-1, 1] as 16-bit WAV, which MLflow's UI plays."""
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            audio_io.write(Path(scratch) / file, wave_T, rate_hz)
            path = str(Path(scratch) / file)
            self._artifact(lambda client: client.log_artifact(self._run_id, path, folder or None), name)

    def _artifact(self, send: Callable[[Any], None], name: str) -> None:
        """Logs an artifact; if that fails, a warning is issued and the training continues."""
        try:
            send(self.experiment)
        except Exception as error:
            rank_zero_warn(f"{name} was not stored in MLflow: {first_line(error)}")

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Sends the queued metrics and closes the run as FINISHED, FAILED or KILLED."""
        if self._client is None:
            return
        if self._system_metrics is not None:
            self._system_metrics.finish()
            self._system_metrics = None
        unsent = self._sender.stop(self._give_up_sec)
        if unsent:
            path = self.folder.unsent_metrics_file
            with path.open("a") as file:
                file.writelines(json.dumps([m.key, m.value, m.timestamp, m.step]) + "\n" for m in unsent)
            rank_zero_warn(f"{len(unsent)} metrics did not reach MLflow; they are in {path}")
        if isinstance(sys.exc_info()[1], KeyboardInterrupt | SIGTERMException):  # "failed" to Lightning
            status = "interrupted"
        state = {"success": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED")
        try:
            self._client.set_terminated(self._run_id, state)
        except Exception as error:
            rank_zero_warn(f"the MLflow run stays open: {first_line(error)}")
        self._client = None

    @override
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        best = checkpoint_callback.best_model_path
        if best and self._client is not None:
            kind = checkpoint_callback.monitor or "newest"
            self._artifact(lambda _: self.set_tags({f"checkpoint.{kind}": best}), "checkpoint path")


def _start_system_metrics(run_id: str | None) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # After the import, which resets the levels of MLflow's loggers.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=tracking_uri())
    monitor.start()
    return monitor
