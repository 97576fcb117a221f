"""One MLflow run, no step twice; a tracking server that is away does not stop training."""

import socket
import subprocess
import sys
import time

import mlflow
import pytest

from lit_moss.runs.tracking import Tracker


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/db.sqlite")
    return mlflow.MlflowClient(f"sqlite:///{tmp_path}/db.sqlite")


def history(client, run_id, key):
    return [(m.step, m.value) for m in client.get_metric_history(run_id, key)]


@pytest.mark.slow
def test_values_arrive_at_full_precision_and_the_run_closes(database):
    tracker = Tracker("study", "first")
    tracker.log_metrics({"train/loss": 0.1 + 0.2, "epoch": 3}, step=1)
    tracker.finalize("success")
    run = database.get_run(tracker.run_id)
    assert history(database, tracker.run_id, "train/loss") == [(1, 0.1 + 0.2)]
    assert run.info.status == "FINISHED"
    assert "epoch" not in run.data.metrics
    assert run.data.tags["version.torch"].startswith("2.11")


@pytest.mark.slow
def test_a_continued_run_logs_no_step_twice(database):
    first = Tracker("study", "first")
    for step in range(1, 8):
        first.log_metrics({"train/loss": step / 3}, step=step)
    first.flush()  # the process dies here: the run stays open
    again = Tracker("study", "first", run_id=first.run_id)
    for step in range(5, 11):
        again.log_metrics({"train/loss": step / 3}, step=step)
    again.finalize("success")
    assert again.run_id == first.run_id
    assert history(database, first.run_id, "train/loss") == [(s, s / 3) for s in range(1, 11)]
    assert database.get_run(first.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_parameters_are_flat_and_a_changed_one_is_a_tag_not_an_error(database):
    tracker = Tracker("study", "first")
    tracker.log_hyperparams({"model": {"init_args": {"head_lr": 0.1}}, "trainer": {"devices": 1}})
    tracker.log_hyperparams({"model": {"init_args": {"head_lr": 0.2}}, "trainer": {"devices": 1}})
    tracker.finalize("success")
    run = database.get_run(tracker.run_id)
    assert run.data.params["model.init_args.head_lr"] == "0.1"
    assert run.data.tags["resumed_with.model.init_args.head_lr"] == "0.1 -> 0.2"


@pytest.mark.slow
def test_pictures_sounds_tables_and_texts_are_stored(database):
    import torch
    from matplotlib.figure import Figure

    tracker = Tracker("study", "first")
    tracker.log_figure(Figure(), "pictures/empty.png")
    tracker.log_audio(torch.zeros(1600), 16_000, "audio/silence.wav")
    tracker.log_text("a: 1", "config.yaml")
    tracker.log_table({"step": [1], "heard": ["one"]}, "transcripts.json")
    tracker.finalize("success")
    stored = {
        f.path
        for folder in (None, "pictures", "audio")
        for f in database.list_artifacts(tracker.run_id, folder)
    }
    assert {"pictures/empty.png", "audio/silence.wav", "config.yaml", "transcripts.json"} <= stored


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def serve(folder, port):
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{folder}/db.sqlite",
        "--default-artifact-root",
        str(folder / "art"),
    ]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True
    )
    for _ in range(300):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.2)
    raise RuntimeError("the tracking server did not start")


def stop(server):
    import os
    import signal

    os.killpg(server.pid, signal.SIGTERM)
    server.wait(30)


@pytest.mark.nightly
def test_a_server_that_goes_away_delays_the_record_and_nothing_else(tmp_path, monkeypatch):
    port = free_port()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    server = serve(tmp_path, port)
    tracker = Tracker("study", "first", flush_sec=0.1)
    tracker.log_metrics({"train/loss": 1.0}, step=1)
    assert tracker.flush(30)
    stop(server)
    began = time.monotonic()
    for step in range(2, 50):
        tracker.log_metrics({"train/loss": float(step)}, step=step)
    assert time.monotonic() - began < 1.0
    tracker.log_text("lost", "note.txt")  # an extra: told, not raised
    server = serve(tmp_path, port)
    try:
        tracker.finalize("success")
    finally:
        stop(server)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/db.sqlite")
    assert [s for s, _ in history(client, tracker.run_id, "train/loss")] == list(range(1, 50))


@pytest.mark.nightly
def test_a_server_that_never_returns_leaves_the_values_in_a_file(tmp_path, monkeypatch):
    port = free_port()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    server = serve(tmp_path, port)
    tracker = Tracker("study", "first", flush_sec=0.1, give_up_sec=2.0)
    tracker.log_metrics({"train/loss": 1.0}, step=1)
    assert tracker.flush(30)
    stop(server)
    tracker.log_metrics({"train/loss": 2.0}, step=2)
    with pytest.warns(UserWarning, match="did not reach MLflow"):
        tracker.finalize("success")
    assert '["train/loss", 2.0,' in (tmp_path / "runs/study/first/unsent_metrics.jsonl").read_text()
