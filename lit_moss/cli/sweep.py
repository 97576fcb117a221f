"""Tries many settings of a run: an Optuna study, whose every trial is a `fit` tracked in MLflow.

    python -m lit_moss sweep -c conf/sweep/split_depth.yaml [--workers N]

Repeat the command after a kill, and it goes on. The same command on another machine joins, where --storage
and MLFLOW_TRACKING_URI are what both reach; with a --run_root that both see, it also continues the other's
runs. At the end: report and pictures in RUN_ROOT/studies/STUDY/study and in the study's MLflow run.
`optuna-dashboard STORAGE` shows the same live.
"""

import argparse
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from lit_moss.errors import UserError

DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("-c", "--config", required=True, help="the sweep's YAML")
    parser.add_argument("--workers", type=int, default=1, help="trials at the same time on this machine")
    parser.add_argument("--trials", type=int, help="in place of the YAML's")
    parser.add_argument("--study", help="in place of the YAML's")
    parser.add_argument("--storage", help="in place of the YAML's: sqlite:///FILE or any database's URL")
    parser.add_argument("--run_root", help="in place of the YAML's")
    parser.add_argument("--retry-failed", action="store_true", help="trials that failed by themselves again")
    parser.add_argument("--report", action="store_true", help="only write the report of what there is")


def main(args: argparse.Namespace) -> None:
    """Runs the sweep, or takes part in it.

    Raises:
        UserError: for what the user can mend, and where trials are left.
    """
    from lit_moss.runs.launch import PARENT_VARIABLE, end_with_parent
    from lit_moss.runs.study_run import study_run
    from lit_moss.sweep.config import read_sweep
    from lit_moss.sweep.report import write_report
    from lit_moss.sweep.study import (
        Objective,
        bury_and_requeue,
        by_slot,
        is_finished,
        is_given_up,
        open_study,
        work,
    )

    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}, expected 1 or more")
    sweep = read_sweep(
        args.config, trials=args.trials, study=args.study, storage=args.storage, run_root=args.run_root
    )
    study = open_study(sweep)
    helper = PARENT_VARIABLE in os.environ  # started by `_workers`
    if helper:
        end_with_parent()
    tracker = study_run(sweep.study, Path(sweep.run_root).absolute(), study.user_attrs.get("mlflow_run_id"))
    study.set_user_attr("mlflow_run_id", tracker.run_id)
    state = "interrupted"
    try:
        if args.retry_failed and not helper:
            bury_and_requeue(study, sweep, again=True)
        if args.workers > 1 and not helper and not args.report:
            _workers(args.workers)
        elif not args.report:
            threads = max(1, (os.cpu_count() or 1) // args.workers) if args.workers > 1 else None
            work(study, sweep, Objective(sweep, str(tracker.run_id), threads))
        if helper:
            return
        report = write_report(study, sweep, tracker)
        state = "success" if is_finished(study, sweep) else "interrupted"
    finally:
        if not helper and not args.report:
            tracker.finalize(state)
    print(report.read_text() + str(report))
    if args.report:
        return
    if not is_finished(study, sweep):
        raise UserError("trials are left, their workers are gone: repeat the command")
    if any(is_given_up(members, sweep) for members in by_slot(study, sweep).values()):
        raise UserError(f"trials were killed each time, see {report}; repeat with --retry-failed")
    if not any(trial.values for trial in study.get_trials(deepcopy=False)):
        raise UserError(f"no trial has a value, see {report}; mend it and repeat with --retry-failed")


def _workers(count: int) -> None:
    """The same command in `count` processes, each taking trials on its own share of the GPUs."""
    from lit_moss.runs.launch import PARENT_VARIABLE

    words = [w for w in sys.argv[1:] if w != "--retry-failed"]
    command = [sys.executable, "-m", "lit_moss", *words]
    workers = []
    for share in shares_of_devices(count, visible_devices()):
        environment = os.environ | {PARENT_VARIABLE: str(os.getpid())}
        if share:
            environment[DEVICES_VARIABLE] = ",".join(share)
        workers.append(subprocess.Popen(command, env=environment))
    codes = [worker.wait() for worker in workers]
    if 2 in codes:
        raise UserError("a worker stopped at a mistake in the study, see its line above; repeat the command")


def visible_devices() -> list[str]:
    """The GPUs that this process may use, by CUDA_VISIBLE_DEVICES where it is set."""
    named = os.environ.get(DEVICES_VARIABLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def shares_of_devices(workers: int, devices: list[str]) -> list[list[str]]:
    """The GPUs of each worker: equal shares; one GPU for several workers where there are fewer GPUs."""
    if len(devices) < workers:
        return [[devices[i % len(devices)]] if devices else [] for i in range(workers)]
    ends = [i * len(devices) // workers for i in range(workers + 1)]
    return [devices[a:b] for a, b in pairwise(ends)]
