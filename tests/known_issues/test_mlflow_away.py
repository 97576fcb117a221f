"""What MLflow refuses or does not have was a traceback at the start of a run.

It left a run folder behind, which `last` then took.
"""

import shutil
import socket
import sqlite3
from pathlib import Path

import mlflow
import pytest
import yaml
from lm_recipe import lm_recipe
from recording import fit, losses, mlflow_runs

from lit_moss.runs.checkpoints import newest_checkpoint
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.mlflow_access import mlflow_name, whole_maps

PATTERNS = {"audio_*": 2.0, "tr?nk": 1.0, "[t]runk": 0.5, "audio_?ead": 1.0, "audio_(*": 1.0}


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def said(capfd) -> str:
    """The last line of what a failed command printed, which must be all of its error."""
    text = capfd.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in text.strip().splitlines() if not line.startswith(("INFO", "WARN"))]
    assert lines[-1].startswith("error: ")
    return lines[-1]


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    folder = tmp_path_factory.mktemp("away") / "five"
    fit(folder, lm_recipe(folder, 5))
    return folder


@pytest.fixture
def run(five, tmp_path):
    shutil.copytree(five, tmp_path / "run")
    for shared in ("backbone", "interleaved-train", "interleaved-validation"):
        shutil.copytree(five.parent / shared, tmp_path / shared)
    (folder,) = (tmp_path / "run" / "runs" / "tiny").iterdir()
    return folder


# Names.


@pytest.mark.slow
def test_patterns_of_groups_are_recorded(tmp_path):
    folder = tmp_path / "run"
    rates = {"class_path": "callbacks.LearningRateSchedule",
             "init_args": {"warmup_steps": 1, "groups": {"audio_*": 2.0, "audio_hea?": 0.5}}}  # fmt: skip
    fit(folder, lm_recipe(folder, 2, rates=rates))
    (run,) = mlflow_runs(folder).values()
    (recorded,) = [v for k, v in run.data.params.items() if k.endswith("groups")]
    assert yaml.safe_load(recorded) == {"audio_*": 2.0, "audio_hea?": 0.5}


@pytest.mark.parametrize(
    "pattern", [*PATTERNS, "", "ä", "a\tb", "a\n", "%", "x" * 300, "..", "../a", "a//b", "a/"]
)
def test_every_name_becomes_one_that_mlflow_takes(pattern):
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    assert whole_maps({"a": {"b": 1}}) == {"a": {"b": 1}}
    for name in (pattern, f"groups.{pattern}"):
        _validate_param_name(mlflow_name(name))
        _validate_metric_name(mlflow_name(name))
        assert len(mlflow_name(name)) <= 250
    assert mlflow_name("val/loss") == "val/loss"
    assert len({mlflow_name(f"groups.{p}") for p in PATTERNS}) == len(PATTERNS)


# A start that fails.


@pytest.mark.nightly
def test_a_failed_start_leaves_no_run_that_last_takes(run, tmp_path, capfd):
    folder = tmp_path / "run"
    wrong = {"class_path": "callbacks.LearningRateSchedule", "init_args": {"groups": {"tail": 2.0}}}
    fit(folder, lm_recipe(folder, 7, rates=wrong), expected=2)
    assert "fits none of the groups" in said(capfd)
    assert newest_checkpoint(run.parent, "last").parent.parent == run
    assert sorted(r.info.status for r in mlflow_runs(folder).values()) == ["FAILED", "FINISHED"]
    # A resumed run that fails stays a run.
    fit(folder, lm_recipe(folder, 7, rates=wrong), "--ckpt_path", "last", expected=2)
    fit(folder, lm_recipe(folder, 7), "--ckpt_path", "last")
    assert newest_checkpoint(run.parent, "last") == run / "checkpoints" / "last.ckpt"


# What is gone.


def client_of(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")


@pytest.mark.nightly
@pytest.mark.parametrize("gone", ["database", "run", "run for good"])
def test_a_run_without_its_record_goes_on_in_a_new_one(run, tmp_path, capfd, gone):
    folder, old = tmp_path / "run", RunFolder(run).mlflow_run_id
    note = (run / "run.json").stat().st_mtime_ns
    if gone == "database":
        (folder / "mlflow.db").unlink()
    elif gone == "run":
        client_of(folder).delete_run(old)
    else:
        with sqlite3.connect(folder / "mlflow.db") as database:
            for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
                database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (old,))
    fit(folder, lm_recipe(folder, 7), "--ckpt_path", "last")
    assert f"has no run {old}, or it was deleted: recording continues in a new" in capfd.readouterr().err
    (new,) = mlflow_runs(folder).values()
    assert new.info.run_id == RunFolder(run).mlflow_run_id != old
    assert new.data.tags["continues_run"] == old
    assert new.data.params["model.init_args.lr"] == "0.003"
    assert (run / "run.json").stat().st_mtime_ns == note  # no newer a run than before
    fit(folder, lm_recipe(folder, 9), "--ckpt_path", "last")
    assert [step for step, _ in losses(folder, new.info.run_id)] == [6, 7, 8, 9]


@pytest.mark.slow
def test_a_deleted_experiment_is_one_line(run, tmp_path, capfd):
    folder = tmp_path / "run"
    client = client_of(folder)
    client.delete_experiment(client.get_experiment_by_name("tiny").experiment_id)
    for words in ((), ("--ckpt_path", "last")):
        fit(folder, lm_recipe(folder, 7), *words, expected=2)
        assert "the MLflow experiment 'tiny' was deleted: restore it with `mlflow exp" in said(capfd)
    assert newest_checkpoint(run.parent, "last").parent.parent == run


@pytest.mark.nightly
@pytest.mark.parametrize("address", ["nobody listens", "no such scheme", "no database", "folder"])
def test_a_store_that_is_not_there_is_one_line(run, tmp_path, capfd, monkeypatch, address):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (tmp_path / "text.db").write_text("this is no database, but a text of some length\n" * 99)
    uri = {
        "nobody listens": f"http://me:secret@127.0.0.1:{port}",
        "no such scheme": "htp://server",
        "no database": f"sqlite:///{tmp_path}/text.db",
        "folder": f"sqlite:///{tmp_path}",
    }[address]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = tmp_path / "run"
    for words in ((), ("--ckpt_path", "last")):
        fit(folder, lm_recipe(folder, 7), *words, expected=2)
        line = said(capfd)
        assert "MLflow at " in line
        assert "MLFLOW_TRACKING_URI" in line
        assert "secret" not in line
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert newest_checkpoint(run.parent, "last").parent.parent == run
