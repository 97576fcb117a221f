"""Searches over settings of a run: an Optuna study in which every trial is a `fit`, tracked in MLflow.

    python -m lit_moss sweep -c conf/sweep/split_depth.yaml [--KEY VALUE …] [--workers N]

Repeat the command after a kill to continue. The same command on another machine joins the study if both
machines can access the `storage` and MLFLOW_TRACKING_URI; with a shared `run_root` it also continues runs of
the other machine. At the end the report and figures are in RUN_ROOT/studies/STUDY/study and in the MLflow run
of the study. `optuna-dashboard STORAGE` shows the study while it runs.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from optuna import Study

    from lit_moss.sweep.config import Sweep

DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
RETRY_FLAG = "--retry-failed"


def read_sweep(words: Sequence[str]) -> "tuple[Sweep, Namespace]":
    """Parses `-c FILE`, `--KEY VALUE` and the flags `workers`, `retry_failed` and `report`.

    Raises:
        UserError: one line for each kind of mistake.
    """
    from lit_moss.cli.yaml_options import OptionsParser
    from lit_moss.sweep.config import Sweep

    # `${seed_everything}` in `set` is resolved by the runs.
    parser = OptionsParser(Sweep, "python -m lit_moss sweep", __doc__, interpolate=False)
    parser.add_argument("--workers", type=int, default=1, help="Trials at the same time on this machine.")
    parser.add_argument(RETRY_FLAG, action="store_true", help="Also run trials again that failed.")
    parser.add_argument("--report", action="store_true", help="Only write the report of the trials so far.")
    return parser.read(words)


def main(words: Sequence[str]) -> None:
    """Runs the sweep, or joins it.

    Raises:
        UserError: for mistakes of the user, and if trials are left.
    """
    sweep, flags = read_sweep(words)
    if flags.workers < 1:
        raise UserError(f"--workers is {flags.workers}, expected 1 or more")
    from lit_moss.runs.launch import PARENT_VARIABLE, end_with_parent
    from lit_moss.runs.study_run import study_run
    from lit_moss.sweep.report import write_report
    from lit_moss.sweep.study import Objective, bury_and_requeue, is_finished, open_study, work

    study = open_study(sweep)
    helper = PARENT_VARIABLE in os.environ  # started by `_run_workers`
    if helper:
        end_with_parent()
    tracker = study_run(sweep.study, Path(sweep.run_root).absolute(), study.user_attrs.get("mlflow_run_id"))
    study.set_user_attr("mlflow_run_id", tracker.run_id)
    state = "interrupted"
    try:
        if flags.retry_failed and not helper:
            bury_and_requeue(study, sweep, again=True)
        if flags.workers > 1 and not helper and not flags.report:
            _run_workers(flags.workers, words)
        elif not flags.report:
            threads = max(1, (os.cpu_count() or 1) // flags.workers) if flags.workers > 1 else None
            work(study, sweep, Objective(sweep, str(tracker.run_id), threads))
        if helper:
            return
        report = write_report(study, sweep, tracker)
        state = "success" if is_finished(study, sweep) else "interrupted"
    finally:
        if flags.report:
            tracker.leave()
        elif not helper:
            tracker.finalize(state)
    print(report.read_text() + str(report))
    if not flags.report:
        _check_complete(study, sweep, report)


def _check_complete(study: "Study", sweep: "Sweep", report: Path) -> None:
    """Raises a UserError with instructions if trials are left or were killed, or none has a value."""
    from lit_moss.sweep.study import by_slot, is_finished, is_given_up

    if not is_finished(study, sweep):
        raise UserError("trials are left, but their workers are gone: repeat the command")
    if any(is_given_up(members, sweep) for members in by_slot(study, sweep).values()):
        raise UserError(f"trials were killed each time, see {report}; repeat with {RETRY_FLAG}")
    if not any(trial.values for trial in study.get_trials(deepcopy=False)):
        raise UserError(f"no trial has a value, see {report}; correct the sweep and repeat with {RETRY_FLAG}")


def _run_workers(count: int, words: Sequence[str]) -> None:
    """Runs the same command in `count` processes, each of which runs trials on its share of the GPUs."""
    from lit_moss.runs.launch import PARENT_VARIABLE, SAVING_SEC

    command = [sys.executable, "-m", "lit_moss", "sweep", *(word for word in words if word != RETRY_FLAG)]
    workers = []
    for share in shares_of_devices(count, visible_devices()):
        environment = os.environ | {PARENT_VARIABLE: str(os.getpid())}
        if share:
            environment[DEVICES_VARIABLE] = ",".join(share)
        # In its own process group, so that Ctrl-C in a terminal reaches it only once, by the handler below.
        workers.append(subprocess.Popen(command, env=environment, process_group=0))
    try:
        codes = [worker.wait() for worker in workers]
    except KeyboardInterrupt:
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        for worker in workers:  # their runs save their states, and no trial is recorded as dead
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(SAVING_SEC + 5)
        raise
    if 2 in codes:
        raise UserError("a worker stopped at a mistake in the study, see its line above; repeat the command")


def visible_devices() -> list[str]:
    """The GPUs that this process may use, from CUDA_VISIBLE_DEVICES if it is set."""
    named = os.environ.get(DEVICES_VARIABLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def shares_of_devices(workers: int, devices: list[str]) -> list[list[str]]:
    """The GPUs of each worker: equal shares; workers share GPUs if there are more workers."""
    if len(devices) < workers:
        return [[devices[i % len(devices)]] if devices else [] for i in range(workers)]
    ends = [i * len(devices) // workers for i in range(workers + 1)]
    return [devices[a:b] for a, b in pairwise(ends)]
