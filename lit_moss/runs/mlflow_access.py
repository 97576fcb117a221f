"""Access to MLflow, which may be unreachable, and its rules for names."""

import contextlib
import hashlib
import os
import posixpath
import queue
import re
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict

from lit_moss.errors import UserError, first_line

DEFAULT_DATABASE = "mlflow.db"  # opened by `mlflow ui` without arguments
# Characters that MLflow accepts in names of parameters, metrics and tags (mlflow.utils.validation), without
# `/`.
_NAME = re.compile(r"[\w.\- :]+", re.ASCII)
_LONGEST_NAME = 250


def tracking_uri() -> str:
    """$MLFLOW_TRACKING_URI, otherwise `mlflow.db` in the working directory."""
    # An absolute path: MLflow caches a connection per address, also after the working directory has changed.
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(DEFAULT_DATABASE).absolute()}"


@contextlib.contextmanager
def mlflow_errors(
    work: str = "record this run", otherwise: str = "unset it to use mlflow.db here"
) -> Iterator[None]:
    """Turns MLflow's errors (no server, no database, invalid names) into a UserError.

    Args:
        work: What failed, for the message.
        otherwise: What the user can do instead, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            f"MLflow at {without_password(tracking_uri())} cannot {work} "
            f"({without_password(reason)}): start its server, set MLFLOW_TRACKING_URI to one that answers, "
            f"or {otherwise}"
        ) from error


def without_password(text: str) -> str:
    """Replaces passwords in addresses `scheme://user:password@host` by `***`."""
    return re.sub(r"(://[^:@/ ]*):[^@/ ]*@", r"\1:***@", text)


def open_client() -> Any:
    """Opens an `MlflowClient` that gives up after seconds instead of minutes if nothing answers."""
    # By default MLflow retries a call seven times and the opening of a database ten times: over 3 minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = min(utils.MAX_RETRY_COUNT, 5)
    return MlflowClient(tracking_uri())


def find_run(client: Any, run_id: str) -> Any:
    """The MLflow run with this id; None if it does not exist or was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def mlflow_name(name: str) -> str:
    """A name that MLflow accepts: the name itself, or with replaced characters and a hash."""
    parts = name.split("/")
    is_path = posixpath.normpath(name) == name and name != "." and not name.startswith("..")
    if all(map(_NAME.fullmatch, parts)) and is_path and len(name) <= _LONGEST_NAME:
        return name
    plain = re.sub(r"[^\w./\- :]", "_", posixpath.normpath(name), flags=re.ASCII).strip("./") or "_"
    return f"{plain[: _LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def whole_maps(params: Any) -> Any:
    """Replaces mappings whose keys MLflow does not accept (patterns) by a single value, their text."""
    if isinstance(params, Namespace):
        params = vars(params)
    if isinstance(params, Mapping):
        if not all(_NAME.fullmatch(str(key)) for key in params):
            return str(dict(params))
        return {key: whole_maps(value) for key, value in params.items()}
    if isinstance(params, list) and params and all(isinstance(item, Mapping | Namespace) for item in params):
        return [whole_maps(item) for item in params]
    return params


def flat_params(params: Any) -> dict[str, str]:
    """Name -> value of nested parameters, as MLflow stores them."""
    return {
        mlflow_name(k.replace("/", ".")): str(v)[:6000]
        for k, v in _flatten_dict(_convert_params(whole_maps(params))).items()
    }


def last_steps(client: Any, run_id: str) -> dict[str, int]:
    """Metric -> latest step recorded for it in the run."""
    # `data.metrics` has only values; these entities also have the step of each metric's latest value.
    return {metric.key: metric.step for metric in client.get_run(run_id).data._metric_objs}


class Sender:
    """A queue of metrics, and a thread that sends them in batches and retries until it succeeds."""

    BATCH = 500  # MLflow accepts 1000 metrics per call

    def __init__(self, flush_sec: float) -> None:
        self._flush_sec = flush_sec
        self._queue: queue.Queue[Any] = queue.Queue()
        self._batch: list[Any] = []
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._abandon = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, send: Callable[[list[Any]], object]) -> None:
        self._stop.clear()
        self._abandon.clear()
        self._thread = threading.Thread(target=self._run, args=(send,), daemon=True, name="metrics")
        self._thread.start()

    def put(self, metric: Any) -> None:
        self._queue.put(metric)

    def flush(self, wait_sec: float) -> bool:
        end = time.monotonic() + wait_sec
        self._wake.set()
        while self._pending and time.monotonic() < end:
            time.sleep(0.01)
        return not self._pending

    @property
    def _pending(self) -> bool:
        return not self._queue.empty() or bool(self._batch)

    def _run(self, send: Callable[[list[Any]], object]) -> None:
        warned, pause_sec = False, 1.0
        while not self._abandon.is_set():
            self._fill()
            if not self._batch:
                if self._stop.is_set():
                    return
                self._wake.wait(self._flush_sec)
                self._wake.clear()
                continue
            try:
                send(self._batch)
            except Exception as error:
                if not warned:
                    print(
                        f"MLflow does not answer ({type(error).__name__}); training continues, "
                        "metrics are sent later",
                        file=sys.stderr,
                        flush=True,
                    )
                    warned = True
                self._abandon.wait(pause_sec)
                pause_sec = min(2 * pause_sec, 15.0)
                continue
            self._batch, warned, pause_sec = [], False, 1.0

    def _fill(self) -> None:
        while len(self._batch) < self.BATCH:
            try:
                self._batch.append(self._queue.get_nowait())
            except queue.Empty:
                return

    def stop(self, wait_sec: float) -> list[Any]:
        """Stops the thread after all metrics are sent, or after `wait_sec`; returns the unsent metrics."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(wait_sec)
            self._abandon.set()
            self._thread.join(30.0)
        while not self._queue.empty():
            self._batch.append(self._queue.get_nowait())
        unsent, self._batch = self._batch, []
        return unsent
