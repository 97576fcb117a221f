"""Slots, workers that die, and what the sampler draws afterwards. The objective is a formula, its workers are
processes; trials that are real runs are in `test_sweep.py`."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from lit_moss.cli.sweep import read_sweep
from lit_moss.errors import UserError
from lit_moss.sweep.study import _machine, bury_and_requeue, by_slot, is_finished, open_study

ROOT = Path(__file__).resolve().parents[2]


def sweep_of(path: str):
    return read_sweep(["-c", path])[0]


def sweep_file(folder: Path, **changes) -> str:
    content = {
        "study": "formula",
        "base": [str(ROOT / "conf" / "stage1.yaml")],
        "search": {
            "model.init_args.lr": {"low": 0.0, "high": 1.0},
            "model.init_args.num_modality_layers": {"low": 1, "high": 6},
        },
        "objectives": {"val/loss": "minimize"},
        "trials": 8,
        "sampler": {"class_path": "optuna.samplers.TPESampler", "init_args": {"n_startup_trials": 2}},
        "storage": f"sqlite:///{folder}/sweeps.db",
        "heartbeat_sec": 1,
    }
    folder.mkdir(exist_ok=True)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return str(path)


def start(path: str, die_in: int = -1, pause: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), path, str(die_in)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PAUSE": str(pause)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def drawn(path: str) -> list[tuple]:
    """(parameters, value) of every slot."""
    sweep = sweep_of(path)
    counted = [members[0] for members in by_slot(open_study(sweep), sweep).values()]
    return [(sorted(t.params.items()), t.values) for t in counted]


def done(path: str) -> list[int]:
    return [int(line) for line in (Path(path).parent / "done.txt").read_text().split()]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "sampler",
    [
        {
            "class_path": "optuna.samplers.TPESampler",
            "init_args": {"n_startup_trials": 2, "multivariate": True},
        },
        "optuna.samplers.RandomSampler",
        "grid",
    ],
)
def test_a_killed_sweep_draws_what_one_that_was_not_draws(tmp_path, sampler):
    changes = {"sampler": sampler}
    if sampler == "grid":
        choices = {"model.init_args.lr": [0.1, 0.2, 0.5], "model.init_args.num_modality_layers": [1, 3]}
        changes |= {"search": {key: {"choices": tried} for key, tried in choices.items()}, "trials": None}
    whole, killed = (sweep_file(tmp_path / name, **changes) for name in ("whole", "killed"))
    assert start(whole).wait(120) == 0
    for slot in (3, 5):
        assert start(killed, die_in=slot).wait(120) == -9
    assert start(killed).wait(120) == 0
    assert drawn(killed) == drawn(whole)
    assert done(killed) == done(whole) == list(range(len(drawn(whole))))


@pytest.mark.nightly
def test_two_workers_of_which_one_dies_lose_no_trial_and_do_none_twice(tmp_path):
    path = sweep_file(tmp_path / "two", trials=10)
    workers = [start(path, die_in=4, pause=0.2), start(path, die_in=6, pause=0.2)]
    codes = [worker.wait(120) for worker in workers]
    assert -9 in codes
    if codes.count(0) == 0:
        assert start(path).wait(120) == 0
    assert sorted(done(path)) == list(range(10))
    sweep = sweep_of(path)
    study = open_study(sweep)
    assert is_finished(study, sweep)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(complete) == 10


def test_a_dead_workers_trial_of_another_machine_comes_back_by_its_heartbeat(tmp_path):
    sweep = sweep_of(sweep_file(tmp_path / "far", trials=1))
    study = open_study(sweep)
    trial = study.ask()
    trial.set_user_attr("worker", ["another machine", 1, 0.0])
    study._storage.record_heartbeat(trial._trial_id)
    bury_and_requeue(study, sweep)
    assert [t.state for t in study.get_trials()] == [TrialState.RUNNING]  # not silent long enough
    import time

    time.sleep(4.5)
    bury_and_requeue(study, sweep)
    assert [t.state for t in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]
    assert list(by_slot(study, sweep)) == [0]


@pytest.mark.nightly
def test_a_trial_whose_worker_dies_each_time_is_given_up(tmp_path):
    path = sweep_file(tmp_path / "bad", trials=2, retries=1)
    assert [start(path, die_in=1).wait(120) for _ in range(3)] == [-9, -9, 0]
    sweep = sweep_of(path)
    study = open_study(sweep)
    assert is_finished(study, sweep)
    assert [len(members) for members in by_slot(study, sweep).values()] == [1, 2]


@pytest.mark.nightly
def test_failed_trials_are_run_again_on_request_only(tmp_path):
    search = {
        "model.init_args.lr": {"choices": [-1.0]},
        "model.init_args.num_modality_layers": {"choices": [1]},
    }
    path = sweep_file(tmp_path / "fail", search=search, sampler="grid", trials=None)
    assert start(path).wait(120) == 0
    assert start(path).wait(120) == 0
    assert done(path) == [0]
    sweep = sweep_of(path)
    study = open_study(sweep)
    bury_and_requeue(study, sweep, again=True)
    assert not is_finished(study, sweep)
    assert start(path).wait(120) == 0
    assert done(path) == [0, 0]


@pytest.fixture
def opened(tmp_path):
    sweep = sweep_of(sweep_file(tmp_path / "one", trials=3, retries=1))
    return open_study(sweep), sweep


def dead_trial(study, **attrs):
    """A trial whose worker, a process of this machine, is gone."""
    trial = study.ask()
    trial.set_user_attr("worker", [*_machine(), 2**22 + 1, 0.0])
    for key, value in attrs.items():
        trial.set_user_attr(key, value)
    return trial


def test_a_death_after_a_failure_was_retried_is_queued_again(opened):
    study, sweep = opened
    trial = study.ask()
    trial.set_user_attr("error", "by itself")
    study.tell(trial, state=TrialState.FAIL)
    bury_and_requeue(study, sweep, again=True)
    dead_trial(study)
    bury_and_requeue(study, sweep)
    assert [t.state.name for t in study.get_trials()] == ["FAIL", "FAIL", "WAITING"]
    assert len(by_slot(study, sweep)) == 1


@pytest.mark.slow
def test_interrupting_by_hand_uses_up_no_retry(opened):
    study, sweep = opened
    for _ in range(4):
        dead_trial(study, interrupted=True)
        bury_and_requeue(study, sweep)
    assert study.get_trials()[-1].state == TrialState.WAITING
    for _ in range(2):
        dead_trial(study)
        bury_and_requeue(study, sweep)
    assert study.get_trials()[-1].state == TrialState.FAIL  # retries: 1
    bury_and_requeue(study, sweep, again=True)
    assert study.get_trials()[-1].state == TrialState.WAITING


def test_a_trial_killed_between_two_draws_draws_all_again(opened):
    study, sweep = opened
    trial = dead_trial(study)
    trial.suggest_float("model.init_args.lr", 0.0, 1.0)
    bury_and_requeue(study, sweep)
    assert study.get_trials()[-1].params == {}
    again = dead_trial(study)
    again.suggest_float("model.init_args.lr", 0.0, 1.0)
    again.suggest_int("model.init_args.num_modality_layers", 1, 6)
    bury_and_requeue(study, sweep)
    assert study.get_trials()[-1].params == again.params


def in_processes(code: str, path: str, count: int = 4) -> list[str]:
    head = (
        "from lit_moss.sweep.study import *; from lit_moss.cli.sweep import read_sweep; "
        f"s, _ = read_sweep(['-c', {path!r}]); study = open_study(s); "
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", head + code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    found = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count
    return found


@pytest.mark.nightly
def test_no_waiting_trial_is_taken_twice(tmp_path):
    path = sweep_file(tmp_path / "many", trials=60)
    study = open_study(sweep_of(path))
    for _ in range(60):
        study.add_trial(optuna.create_trial(state=TrialState.WAITING))
    taken = in_processes("print(*[study.ask().number for _ in range(15)])", path)
    assert sorted(int(n) for out in taken for n in out.split()) == list(range(60))


@pytest.mark.nightly
def test_many_workers_bury_the_same_dead_and_none_falls(tmp_path):
    path = sweep_file(tmp_path / "many", trials=6)
    study, sweep = open_study(sweep_of(path)), sweep_of(path)
    for _ in range(6):
        dead_trial(study)
    in_processes("bury_and_requeue(study, s)", path)
    assert {t.state.name for t in study.get_trials()[:6]} == {"FAIL"}
    assert start(path).wait(120) == 0  # queued doubles step back
    assert sorted(done(path)) == list(range(6))
    assert is_finished(study, sweep)


@pytest.mark.nightly
def test_more_trials_later_go_on_where_the_fewer_ended(tmp_path):
    few, many = (sweep_file(tmp_path / name, trials=8) for name in ("few", "many"))
    sweep_file(tmp_path / "few", trials=4)
    assert start(few).wait(120) == 0
    sweep_file(tmp_path / "few", trials=8)
    assert start(few).wait(120) == 0
    assert start(many).wait(120) == 0
    assert drawn(few) == drawn(many)


@pytest.mark.slow
def test_another_search_does_not_join_the_study(tmp_path):
    path = sweep_file(tmp_path / "one")
    open_study(sweep_of(path))
    other = {"model.init_args.lr": {"low": 0.0, "high": 2.0}}
    sweep_file(tmp_path / "one", search=other)
    study = open_study(sweep_of(path))  # nothing has a value yet: a mistake can be corrected
    study.tell(study.ask(), 1.0)
    sweep_file(tmp_path / "one")
    with pytest.raises(UserError, match="begun with another search"):
        open_study(sweep_of(path))
    sweep_file(tmp_path / "one", search=other, objectives={"val/loss": "maximize"})
    with pytest.raises(UserError, match="directions"):
        open_study(sweep_of(path))


def test_a_storage_that_is_none_is_one_line(tmp_path):
    path = sweep_file(tmp_path / "one", storage="sqlite:////no/such/folder/x.db")
    with pytest.raises(UserError, match="cannot be opened"):
        open_study(sweep_of(path))
