"""`compare`: tables and pictures of runs that MLflow knows."""

import mlflow
import pytest

from experiments.studies import compare


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    ids = {}
    for name, start in (("a", 8.0), ("b", 4.0)):
        experiment = client.create_experiment(name)
        for again in (0.0, 1.0):  # the newest counts
            run = client.create_run(experiment, start_time=int(1000 + again)).info.run_id
            for step in range(3):
                client.log_metric(run, "heldout/text_ppl", start + again - step, step=step)
            client.set_terminated(run)
        ids[name] = run
    return ids


@pytest.mark.slow
def test_first_and_last_values_of_the_newest_runs(tracked, tmp_path, capsys):
    assert compare.main(["a", tracked["b"], "--metrics", "heldout/text_ppl", "none/such"]) == 0
    text = (tmp_path / "compare" / "compare.md").read_text()
    assert "| a | 2 | 9 -> 7 | – |" in text
    assert f"| {tracked['b']} | 2 | 5 -> 3 | – |" in text
    assert text in capsys.readouterr().out
    assert (tmp_path / "compare" / "compare.png").stat().st_size > 1000


@pytest.mark.slow
def test_an_unknown_name_is_one_line(tracked, capsys):
    assert compare.main(["nobody"]) == 2
    assert "no experiment and no run 'nobody'" in capsys.readouterr().err
