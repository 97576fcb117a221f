"""What a run records in MLflow, and how a resumed run goes on in the same one.

`Tracker` is a Lightning logger. It differs from Lightning's own `MLFlowLogger` in what a training run needs:
  * the run id is in every checkpoint; a resumed run continues it, and a (metric, step) already there is not
    sent again - after `kill -9` the last steps are computed a second time, to the same values, and must not
    be logged twice;
  * metrics travel on a thread of their own: a tracking server that is gone delays the record, never the
    training;
  * git state, versions, the resolved configuration, figures, sounds and tables have a method each.
"""

import json
import logging
import os
import platform
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from typing_extensions import override

from lit_moss.runs.checkpoints import newest_step, read_note
from lit_moss.errors import UserError
from lit_moss.runs.mlflow_access import (
    Sender,
    find_run,
    mlflow_errors,
    mlflow_name,
    open_client,
    tracking_uri,
    whole_maps,
    without_password,
)
from lit_moss.runs.recipes import TAGS_VARIABLE, write_json

_FOLDER = "run_folder"  # tag: where the run was trained last
_VERSIONS = ("lit-moss", "torch", "torchaudio", "lightning", "mlflow", "numpy")


class Tracker(Logger):
    """One MLflow run for one `fit`.

    Args:
        name: MLflow experiment.
        version: Name of the run; its files lie in `save_dir/name/version`.
        save_dir: Root folder of all runs' files.
        run_id: MLflow run to continue; None makes a new one. One that the database does not hold (a run
            folder from another machine, a deleted run) goes on in a new one.
        tags: Further tags of a new MLflow run.
        system_metrics: Whether load and memory of the machine are recorded.
        flush_sec: Longest time a metric waits before it is sent.
        give_up_sec: How long the end of a run waits for a tracking server that does not answer. What could
            not be sent by then is written to `unsent_metrics.jsonl` in the run's folder.
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
    ) -> None:
        super().__init__()
        self._tags = dict(tags or {})
        self._note_before: Any = None  # what `run.json` held if this tracker has written it
        self._from_step, self._settings = 0, cast(dict[str, str], {})
        self._name, self._version, self._save_dir = name, version, save_dir
        self._run_id, self._give_up_sec = run_id, give_up_sec
        self._client: Any = None
        self._last_step: dict[str, int] = {}
        self._sender = Sender(flush_sec)
        self._with_system_metrics, self._system_metrics = system_metrics, cast(Any, None)

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
        """Root of all runs' files, name of the runs, name of this one."""
        return self._save_dir, self._name, self._version

    @place.setter
    def place(self, place: tuple[str, str, str]) -> None:
        self._save_dir, self._name, self._version = place

    @property
    def run_dir(self) -> Path:
        """Folder of this run's files; Lightning puts `checkpoints/` in it."""
        return Path(self._save_dir) / self._name / self._version

    @property
    def run_id(self) -> str | None:
        """MLflow run id; None on ranks other than 0 and before the run exists."""
        return self._run_id

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `MlflowClient`, with the run in place."""
        if self._client is None:
            with mlflow_errors():
                client = open_client()
                run_id = self._run_id = self._continued(client) or self._create(client)
            self._client = client
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._write_note()
            self._sender.start(lambda batch: client.log_batch(run_id, metrics=batch))
            if self._with_system_metrics:
                self._system_metrics = _start_system_metrics(self._run_id)
        return self._client

    def resume_from(self, step: int, params: Mapping[str, Any], only_at_start: Collection[str]) -> None:
        """Says, before the MLflow run is opened, from which optimizer step it goes on and with what settings.

        If they are not those of the record, and that holds later steps already, the run gets a new one.
        """
        self._from_step = step
        self._settings = {k: v for k, v in _flat(params).items()
                          if k.startswith("model.init_args.") and k not in only_at_start}  # fmt: skip

    def _write_note(self) -> None:
        """`run.json`: makes the folder a run, and its time of writing says which run is the newest."""
        path = self.run_dir / "run.json"
        old = path.stat() if path.exists() else None
        before = {} if old is None else json.loads(path.read_text())
        if before.get("mlflow_run_id") == self._run_id:
            return
        self._note_before = before
        write_json(path, {"mlflow_run_id": self._run_id})
        if old is not None:
            os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))

    @rank_zero_only
    def abandon(self) -> None:
        """For a start that failed before its first step: closes the MLflow run, and leaves the folder as it
        was: a new one is no run then, so that `last` does not take it."""
        self.finalize("failed")
        if self._note_before == {}:
            (self.run_dir / "run.json").unlink(missing_ok=True)
        elif self._note_before:
            self._run_id = self._note_before["mlflow_run_id"]
            self._write_note()

    def _continued(self, client: Any) -> str | None:
        """The run to continue, set running; None if there is none."""
        if self._run_id is None:
            return None
        run = find_run(client, self._run_id)
        if run is None:
            print(
                f"MLflow at {without_password(tracking_uri())} has no run {self._run_id}, or it was deleted: "
                "the record goes on in a new MLflow run",
                file=sys.stderr,
            )
            self._tags = {"continues_run": self._run_id} | self._tags
            return None
        other = Path(run.data.tags.get(_FOLDER, self.run_dir))
        if self._is_behind(other):
            print(
                f"{other} has gone on with the run that {self.run_dir} is a copy of: this one is recorded "
                "in a new MLflow run",
                file=sys.stderr,
            )
            self._tags = {"forked_from": f"run {self._run_id}, {other}"} | self._tags
            return None
        last_step = _last_steps(client, self._run_id)
        if self._leaves(last_step):
            print(
                f"MLflow's run {self._run_id} holds steps after {self._from_step}, taken with other "
                "settings: what follows is recorded in a new MLflow run",
                file=sys.stderr,
            )
            if run.info.status == "RUNNING":  # killed
                client.update_run(self._run_id, status="KILLED")
            self._tags = {"forked_from": f"run {self._run_id}, step {self._from_step}"} | self._tags
            return None
        client.set_tag(self._run_id, _FOLDER, str(self.run_dir.resolve()))
        client.update_run(self._run_id, status="RUNNING")
        self._last_step = last_step
        return self._run_id

    def _leaves(self, last_step: Mapping[str, int]) -> bool:
        """Whether steps already recorded are taken again in another way: after a kill, with another rate."""
        before = self.run_dir / "config.yaml"
        if not before.is_file() or all(
            step <= self._from_step for name, step in last_step.items() if not name.startswith("system/")
        ):
            return False
        known = _flat(yaml.safe_load(before.read_text()))
        both = ((known[k], v) for k, v in self._settings.items() if k in known)
        return any(old != new and os.sep not in old + new for old, new in both)  # folders may have moved

    def _is_behind(self, other: Path) -> bool:
        """Whether another folder, a copy of this one or its original, holds the same run at a later step."""
        try:
            same = read_note(other)["mlflow_run_id"] == self._run_id and not other.samefile(self.run_dir)
        except (OSError, ValueError, KeyError):
            return False
        return same and newest_step(other) > newest_step(self.run_dir)

    def _create(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._name)
        if found and found.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {self._name!r} was deleted: bring it back with `mlflow experiments "
                f"restore --experiment-id {found.experiment_id}`, or begin a run with another --name"
            )
        experiment_id = (
            found.experiment_id
            if found
            else client.create_experiment(
                self._name, tags={"mlflow.experimentKind": "custom_model_development"}
            )
        )
        tags = _provenance() | json.loads(os.environ.get(TAGS_VARIABLE, "{}")) | self._tags
        tags[_FOLDER] = str(self.run_dir.resolve())
        return client.create_run(experiment_id, run_name=self._version, tags=tags).info.run_id

    @override
    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, only_at_start: Collection[str] = (), **kwargs: Any
    ) -> None:
        """Parameters of the run, nested keys joined by dots.

        One already logged keeps its first value (MLflow's rule); its changes are a tag, `old -> new`.

        Args:
            params: The resolved configuration.
            only_at_start: Names of those that a run goes on without: another value is not recorded.
        """
        from mlflow.entities import Param

        client = self.experiment
        data = client.get_run(self._run_id).data
        known = data.params
        flat = _flat(params)
        new = [Param(key, value) for key, value in flat.items() if key not in known]
        for start in range(0, len(new), 100):  # MLflow takes 100 a call
            client.log_batch(self._run_id, params=new[start : start + 100])
        earlier = {k: data.tags.get(mlflow_name(f"resumed_with.{k}"), known[k]) for k in flat if k in known}
        changed = {k: (old, flat[k]) for k, old in earlier.items() if old.rpartition(" -> ")[2] != flat[k]}
        for key in changed.keys() & set(only_at_start):
            old, new_ = changed.pop(key)
            if "." in key or key == "seed_everything":
                rank_zero_warn(f"{key} {old} -> {new_} has no effect on a resumed run; it is not recorded")
        if changed:
            self.set_tags({f"resumed_with.{k}": f"{old} -> {new_}" for k, (old, new_) in changed.items()})

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queues `stage/name` values of one optimizer step."""
        from mlflow.entities import Metric

        if step is None:
            raise ValueError(f"metrics {sorted(metrics)} without a step")
        self.experiment  # noqa: B018 - makes the run, which tells the steps already logged
        now_ms = int(time.time() * 1000)
        for key, value in metrics.items():
            name = mlflow_name(key)
            if key != "epoch" and step > self._last_step.get(name, -1):
                self._last_step[name] = step
                self._sender.put(Metric(name, float(value), now_ms, step))

    @rank_zero_only
    def flush(self, wait_sec: float = 5.0) -> bool:
        """Waits until all queued metrics are sent, at most `wait_sec`.

        A checkpoint's metrics must not die with a killed process: a resume would never compute them again.
        """
        return self._sender.flush(wait_sec)

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run; later values replace earlier ones."""
        for key, value in tags.items():
            self.experiment.set_tag(self._run_id, mlflow_name(key), str(value)[:5000])

    @rank_zero_only
    def log_text(self, text: str, name: str) -> None:
        """A text file among the run's artifacts."""
        self._artifact(lambda client: client.log_text(self._run_id, text, name), name)

    @rank_zero_only
    def log_figure(self, figure: Any, name: str) -> None:
        """A matplotlib figure as PNG; the figure is closed."""
        import matplotlib.pyplot as plt

        self._artifact(lambda client: client.log_figure(self._run_id, figure, name), name)
        plt.close(figure)

    @rank_zero_only
    def log_table(self, columns: dict[str, list[Any]], name: str) -> None:
        """A table, shown and compared across runs by MLflow's UI.

        Rows are appended to a table of the same name.
        """
        self._artifact(lambda client: client.log_table(self._run_id, columns, name), name)

    @rank_zero_only
    def log_audio(self, wave_T: Any, rate_hz: int, name: str) -> None:
        """A sound: (T,) samples in [-1, 1] as 16-bit WAV, which MLflow's UI plays."""
        import tempfile

        from lit_moss.audio import io as audio_io

        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            audio_io.write(Path(scratch) / file, wave_T, rate_hz)
            path = str(Path(scratch) / file)
            self._artifact(lambda client: client.log_artifact(self._run_id, path, folder or None), name)

    def _artifact(self, send: Callable[[Any], None], name: str) -> None:
        """Artifacts are extras: one that cannot be stored is told, and the training goes on."""
        try:
            send(self.experiment)
        except Exception as error:
            rank_zero_warn(
                f"{name} was not stored in MLflow: {str(error).splitlines()[0] if str(error) else error!r}"
            )

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Sends what waits, and closes the run as FINISHED or FAILED."""
        if self._client is None:
            return
        if self._system_metrics is not None:
            self._system_metrics.finish()
            self._system_metrics = None
        unsent = self._sender.stop(self._give_up_sec)
        if unsent:
            path = self.run_dir / "unsent_metrics.jsonl"
            with path.open("a") as file:
                file.writelines(json.dumps([m.key, m.value, m.timestamp, m.step]) + "\n" for m in unsent)
            rank_zero_warn(f"{len(unsent)} metrics did not reach MLflow; they are in {path}")
        state = {"success": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED")
        try:
            self._client.set_terminated(self._run_id, state)
        except Exception as error:
            rank_zero_warn(f"the MLflow run stays open: {str(error).splitlines()[0]}")
        self._client = None

    @override
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        best = getattr(checkpoint_callback, "best_model_path", "")
        if best and self._client is not None:
            kind = checkpoint_callback.monitor or "newest"
            self._artifact(lambda _: self.set_tags({f"checkpoint.{kind}": best}), "checkpoint path")


def study_run(name: str, root: Path, run_id: str | None = None) -> Tracker:
    """The run of a study, under which its runs stand in MLflow: that of an earlier call, or a new one.

    Args:
        name: MLflow experiment, also of the runs.
        root: Folder of all runs' files; the study's own are in `studies/NAME/study`.
        run_id: The run, where the caller knows it.
    """
    note = root / "studies" / name / "study" / "run.json"
    if run_id is None and note.exists():
        run_id = json.loads(note.read_text())["mlflow_run_id"]
    if run_id is not None:
        with mlflow_errors():
            there = find_run(open_client(), run_id)
        if there is None:
            raise UserError(
                f"MLflow at {without_password(tracking_uri())} has no run {run_id} of study {name!r}: set "
                "MLFLOW_TRACKING_URI to the server that the study was begun with"
            )
    tracker = Tracker(name, "study", str(root / "studies"), run_id, system_metrics=False)
    tracker.experiment  # noqa: B018 - makes the run
    return tracker


def _flat(params: Any) -> dict[str, str]:
    """Name -> value of parameters as MLflow keeps them."""
    return {
        mlflow_name(k.replace("/", ".")): str(v)[:6000]
        for k, v in _flatten_dict(_convert_params(whole_maps(params))).items()
    }


def _last_steps(client: Any, run_id: str) -> dict[str, int]:
    """Latest step of every metric that the run holds."""
    # `data.metrics` has the values alone; the entities beside it carry the step of each key's latest point.
    return {metric.key: metric.step for metric in client.get_run(run_id).data._metric_objs}


def _start_system_metrics(run_id: str | None) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # Only now: MLflow sets its loggers' levels anew when it is imported.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=tracking_uri())
    monitor.start()
    return monitor


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _provenance() -> dict[str, str]:
    """Tags that tell what code, versions and machine a run had."""
    tags = {
        "mlflow.source.name": "lit_moss",
        "command": without_password(" ".join(sys.argv[1:])),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "git.branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
                 "git.dirty": str(bool(_git("status", "--porcelain", "--untracked-files=no")))}  # fmt: skip
    for package in _VERSIONS:
        try:
            tags[f"version.{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            tags[f"version.{package}"] = "not installed"
    return tags
