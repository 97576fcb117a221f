"""The study: which trial is the n-th, which worker runs it, and what happens if that worker dies.

Optuna gives a trial a new number when it is retried after the death of its worker. To identify it with the
first attempt, trials are counted by slots: the slot of a first attempt is the number of first attempts before
it, and a retry has the slot of its first attempt. A slot is open until one of its trials is complete, was
pruned, or has failed with an error of its own.
"""

import contextlib
import copy
import json
import math
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any, NoReturn, cast

import optuna
import psutil
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from lit_moss.errors import UserError, first_line
from lit_moss.runs.folder import Result, RunFolder
from lit_moss.runs.launch import METRICS_VARIABLE, RunError, run_fit
from lit_moss.sweep.config import Sweep
from lit_moss.sweep.trial import STORAGE_VARIABLE, PrunableTrial

DONE, ALIVE, FAILED, DEAD = range(4)
# User attributes of a trial.
ERROR, WORKER, DOUBLE, INTERRUPTED = "error", "worker", "double", "interrupted"


def open_study(sweep: Sweep) -> optuna.Study:
    """Creates the study in its storage, or joins it."""
    storage, place = open_storage(sweep.storage, sweep.heartbeat_sec), without_password(sweep.storage)
    directions = list(sweep.objectives.values())
    study = optuna.create_study(
        storage=storage,
        study_name=sweep.study,
        directions=cast(Any, directions),
        sampler=BySlot(sweep),
        pruner=sweep.make_pruner(),
        load_if_exists=True,
    )
    theirs = [d.name.lower() for d in study.directions]
    if theirs != directions:
        raise UserError(f"study {sweep.study!r} in {place} has directions {theirs}, the YAML {directions}")
    if not any(trial.values for trial in study.get_trials(deepcopy=False)):
        study.set_user_attr("fingerprint", sweep.fingerprint())  # nothing to compare with yet
    names = study.metric_names
    if names is None or not any(trial.values for trial in study.get_trials(deepcopy=False)):
        study.set_metric_names(list(sweep.objectives))
    elif names != list(sweep.objectives):
        raise UserError(f"study {sweep.study!r} in {place} has objectives {names}: give it another name")
    recorded = study.user_attrs["fingerprint"]
    if recorded != sweep.fingerprint():
        raise UserError(
            f"study {sweep.study!r} in {place} was begun with another search, recipe, sampler or "
            f"seeds ({recorded}, now {sweep.fingerprint()}): trials cannot be compared, give it another name"
        )
    return study


def open_storage(url: str, heartbeat_sec: int) -> RDBStorage:
    """Opens a database by its URL: `sqlite:///FILE` for one machine, others for several machines."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # failed trials are reported in one line here
    sqlite = url.startswith("sqlite")
    # A connection is idle while a run is training; a server may have closed it.
    options = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    try:
        storage = RDBStorage(
            url, engine_kwargs=options, heartbeat_interval=heartbeat_sec, grace_period=3 * heartbeat_sec
        )
    except Exception as error:  # of any database driver
        reason = first_line(error).replace(url, without_password(url))
        raise UserError(f"storage {without_password(url)} cannot be opened: {reason}") from error
    if sqlite:
        # SQLite has no row locks, and Optuna reads a waiting trial before it takes it: two workers took the
        # same trial in 4 of 90 cases. Therefore every transaction takes the lock when it begins.
        storage.engine.dispose()
        event.listen(storage.engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
        event.listen(
            storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE")
        )
    return storage


def without_password(url: str) -> str:
    """The URL without password, for messages and records."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


class BySlot(BaseSampler):
    """The sweep's sampler, created anew for each slot.

    Its draws depend only on seed, slot and the finished trials, not on what a process has drawn before.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._inner: BaseSampler = sweep.make_sampler(0)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Called by Optuna before anything is drawn."""
        # From all trials: a pruner may have filtered those of `study`.
        slots = slots_of(study._storage.get_all_trials(study._study_id, deepcopy=False))
        self._inner = self._sweep.make_sampler(slots[trial.number])
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """As in the sampler."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        """As in the sampler."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """As in the sampler."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: Any, state: TrialState, values: Sequence[float] | None) -> None:
        """As in the sampler."""
        self._inner.after_trial(study, trial, state, values)


def slots_of(trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """Number of a trial -> its slot."""
    slots: dict[int, int] = {}
    originals = 0
    for trial in sorted(trials, key=lambda t: t.number):
        first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
        if first is None:
            slots[trial.number] = originals
            originals += 1
        else:
            slots[trial.number] = slots[first]
    return slots


def by_slot(study: optuna.Study, sweep: Sweep) -> dict[int, list[FrozenTrial]]:
    """Slot -> its trials; first a finished one, otherwise the oldest alive, otherwise the newest."""
    trials = study.get_trials(deepcopy=False)
    slots = slots_of(trials)
    members_of: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        if slots[trial.number] < (sweep.trials or 0) and DOUBLE not in trial.user_attrs:
            members_of.setdefault(slots[trial.number], []).append(trial)
    for members in members_of.values():
        members.sort(key=lambda t: (r, t.number) if (r := fate(t)) <= ALIVE else (FAILED, -t.number))
    return dict(sorted(members_of.items()))


def deaths(members: Sequence[FrozenTrial]) -> int:
    """Number of times a slot's worker or run was killed, not counting interruptions by hand."""
    return sum(fate(t) == DEAD and INTERRUPTED not in t.user_attrs for t in members)


def fate(trial: FrozenTrial) -> int:
    """State of a trial: DONE, ALIVE, FAILED (with an error of its own) or DEAD (killed)."""
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return DONE
    if trial.state != TrialState.FAIL:
        return ALIVE
    return FAILED if ERROR in trial.user_attrs else DEAD


def bury_and_requeue(study: optuna.Study, sweep: Sweep, again: bool = False) -> None:
    """Marks trials of dead workers as failed, and requeues open slots that have no running trial.

    Args:
        study: The study.
        sweep: Its configuration.
        again: Also requeue failed trials, and those that were killed too often.
    """
    fail_stale_trials(study)  # other machines, by the heartbeat
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_dead(trial, 3 * sweep.heartbeat_sec):  # this machine, immediately
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process was first
                study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    requeue = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
    for members in by_slot(study, sweep).values():
        dead = fate(members[0]) == DEAD and (again or deaths(members) <= sweep.retries)
        if dead or (again and fate(members[0]) == FAILED):
            trial = copy.deepcopy(members[0])
            for own in (ERROR, WORKER, INTERRUPTED):
                trial.user_attrs.pop(own, None)
            if trial.params.keys() != sweep.search.keys():  # killed between two draws: draws all again
                trial.params = trial.distributions = {}
            requeue(study, trial)


def _is_dead(trial: FrozenTrial, silent_sec: float) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # killed between taking the trial and writing its name
        return bool(
            trial.datetime_start and (datetime.now() - trial.datetime_start).total_seconds() > silent_sec
        )
    *machine, pid, started = worker
    if machine != _machine():
        return False
    try:
        process = psutil.Process(pid)
        # A killed worker is a zombie until its parent, which may be waiting for another one, has noticed.
        return abs(process.create_time() - started) > 1.0 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _machine() -> list[str]:
    """Several machines may have the same name, and several containers the same process ids."""
    names = [socket.gethostname()]
    with contextlib.suppress(OSError):
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        names.append(os.readlink("/proc/self/ns/pid"))
    return names


def is_finished(study: optuna.Study, sweep: Sweep) -> bool:
    """Whether there is no slot left to run."""
    slots = by_slot(study, sweep)
    return len(slots) == sweep.trials and all(
        fate(members[0]) in (DONE, FAILED) or is_given_up(members, sweep) for members in slots.values()
    )


def is_given_up(members: Sequence[FrozenTrial], sweep: Sweep) -> bool:
    """Whether a slot has been killed more often than it may be retried."""
    return fate(members[0]) == DEAD and deaths(members) > sweep.retries


def work(study: optuna.Study, sweep: Sweep, objective: Callable[[optuna.Trial], list[float]]) -> None:
    """Runs trials until none is left; waits for those of other workers, which may die."""
    while True:
        bury_and_requeue(study, sweep)
        if is_finished(study, sweep):
            return
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if waiting or len(by_slot(study, sweep)) < (sweep.trials or 0):
            try:
                study.optimize(objective, n_trials=1, catch=(RunError,))
            except ImportError as error:
                raise UserError(f"the sampler needs another package: {error}") from error
            except optuna.exceptions.UpdateFinishedTrialError:
                pass  # after too long a silence, another worker has the trial
            except ValueError as error:
                if "Cannot tell" not in str(error):  # another worker has finished the trial
                    raise
        else:
            time.sleep(min(5.0, sweep.heartbeat_sec))


def begin(trial: optuna.Trial, sweep: Sweep) -> tuple[int, dict[str, Any]]:
    """Writes the worker's name to a trial and draws its parameters; returns (slot, key -> value).

    Raises:
        RunError: if another trial has this slot: two workers took the last one, or both requeued it.
    """
    trial.set_user_attr(WORKER, [*_machine(), os.getpid(), psutil.Process().create_time()])
    slot = slots_of(trial.study.get_trials(deepcopy=False))[trial.number]
    members = by_slot(trial.study, sweep).get(slot)
    if members is None or members[0].number != trial.number:
        trial.set_user_attr(DOUBLE, True)
        raise RunError(f"slot {slot} is another trial's")
    return slot, {key: _suggest(trial, key, d) for key, d in sweep.distributions().items()}


class Objective:
    """Runs a trial: one `fit` per seed; returns the mean of each objective.

    Args:
        sweep: Configuration of the sweep.
        parent: MLflow run that becomes the parent of the trials' runs.
        threads: OMP_NUM_THREADS of a run; None: unchanged.
    """

    def __init__(self, sweep: Sweep, parent: str, threads: int | None) -> None:
        self.sweep, self.parent, self.threads = sweep, parent, threads

    def __call__(self, trial: optuna.Trial) -> list[float]:
        sweep = self.sweep
        slot, params = begin(trial, sweep)
        settings = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in params.items())
        print(f"trial {slot + 1}/{sweep.trials}: {settings}", flush=True)
        try:
            for seed in sweep.seeds:
                if _result(trial, seed) is None:
                    self._run(trial, slot, params, seed)
        except KeyboardInterrupt:
            trial.set_user_attr(INTERRUPTED, True)
            raise
        results = [_result(trial, seed) or {} for seed in sweep.seeds]
        values = [mean(r[metric] for r in results) for metric in sweep.objectives]
        if any(map(math.isnan, values)):
            self._fail(trial, slot, RunError(f"{list(sweep.objectives)} came to {values}"))
        print(f"trial {slot + 1}/{sweep.trials}: " + ", ".join(
            f"{metric} {value:.4g}" for metric, value in zip(sweep.objectives, values, strict=True)
        ), flush=True)  # fmt: skip
        return values

    def _run(self, trial: optuna.Trial, slot: int, params: dict[str, Any], seed: int) -> None:
        sweep = self.sweep
        config = sweep.recipe(params, seed)
        tags = {"mlflow.parentRunId": self.parent, "sweep.trial": str(slot), "sweep.seed": str(seed)}
        if devices := os.environ.get("CUDA_VISIBLE_DEVICES"):
            tags["sweep.devices"] = devices
        folder = Path(sweep.run_root).absolute() / sweep.study / f"trial-{slot:03d}-seed-{seed}"
        try:
            result = run_fit(config, folder, tags, self.threads, self._variables(trial, config, seed))
        except RunError as error:
            if "no metric" in str(error):  # unless it was killed before a validation that logs it
                self._check_metrics(trial, RunFolder(folder).result(), str(error))
            if error.killed:  # by the system, mostly for memory: requeued as after a death
                print(f"trial {slot + 1}/{sweep.trials} was killed: {error}", file=sys.stderr, flush=True)
                raise
            self._fail(trial, slot, error)
        except UserError as error:
            self._fail(trial, slot, RunError(str(error)))
        if result.get("stopped") == "pruned":
            raise optuna.TrialPruned(f"pruned at step {result['step']}")
        self._check_metrics(trial, result, f"see {folder}")
        values = result["metrics"]
        if sweep.validation == "best":
            direction = next(iter(sweep.objectives.values()))
            values = values | result["lowest" if direction == "minimize" else "highest"]
        for metric in sweep.objectives:
            if values[metric] is None:
                self._fail(trial, slot, RunError(f"{metric} is not a finite number at the end of {folder}"))
        trial.set_user_attr(f"seed {seed}", {m: values[m] for m in sweep.objectives})

    def _check_metrics(self, trial: optuna.Trial, result: Result | None, where: str) -> None:
        """Stops the study if no validation logs an objective, since all trials would be useless.

        The trial is requeued at the next start, because its parameters are not the cause.
        """
        known = [key for key in (result["metrics"] if result else {}) if "/" in key]
        missing = [metric for metric in self.sweep.objectives if metric not in known]
        if known and missing:
            trial.set_user_attr(INTERRUPTED, True)
            raise UserError(
                f"objectives: no metric {missing[0]!r}, expected one of {', '.join(known)}: correct the name "
                f"and repeat the command ({where})"
            )

    def _fail(self, trial: optuna.Trial, slot: int, error: RunError) -> NoReturn:
        trial.set_user_attr(ERROR, str(error))
        print(f"trial {slot + 1}/{self.sweep.trials} failed: {error}", file=sys.stderr, flush=True)
        raise error

    def _variables(self, trial: optuna.Trial, config: dict[str, Any], seed: int) -> dict[str, str]:
        """Environment of a run: settings of the sweep, which are not part of the recipe."""
        sweep = self.sweep
        variables = {
            STORAGE_VARIABLE: sweep.storage,
            METRICS_VARIABLE: json.dumps(list(sweep.objectives)),
        }
        if not sweep.pruner:
            return variables
        prunable_trial = PrunableTrial(
            study=sweep.study,
            trial=trial.number,
            monitor=next(iter(sweep.objectives)),
            pruner=sweep.pruner,
            heartbeat_sec=sweep.heartbeat_sec,
            first_step=sweep.seeds.index(seed) * config["trainer"]["max_steps"],
        )
        return variables | prunable_trial.variables()


def _result(trial: optuna.Trial, seed: int) -> dict[str, float] | None:
    return trial.user_attrs.get(f"seed {seed}")


def _suggest(trial: optuna.Trial, key: str, d: Any) -> Any:
    if isinstance(d, optuna.distributions.CategoricalDistribution):
        return trial.suggest_categorical(key, d.choices)
    if isinstance(d, optuna.distributions.IntDistribution):
        return trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
    return trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)
