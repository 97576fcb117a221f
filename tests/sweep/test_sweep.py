"""`python -m lit_moss sweep` with real runs: killed, continued, pruned, and what MLflow holds of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from database import give_database
from mlflow import MlflowClient
from recording import kill_behind_a_checkpoint

from lit_moss.cli.main import main
from lit_moss.cli.sweep import shares_of_devices
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.recipes import read_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base(tmp_path) -> Path:
    from lm_recipe import lm_recipe

    path = lm_recipe(tmp_path / "base", 16)
    config = read_recipe([path])
    callbacks = config["trainer"]["callbacks"]
    config["trainer"]["callbacks"] = [c for c in callbacks if not c["class_path"].startswith("recording")]
    path.write_text(yaml.safe_dump(config))
    return path


def start(folder: Path, *words: str, **variables: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "lit_moss", "sweep", "-c", "sweep.yaml", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def sweep_here(tmp_path, monkeypatch, capfd):
    """`sweep` in this process, which has imported everything already: (exit code, output)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the runs
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    give_database(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        code = main(["sweep", "-c", "sweep.yaml", *words])
        return code, "".join(capfd.readouterr())

    return run


@pytest.mark.nightly
def test_a_sweep_killed_in_a_run_goes_on_in_that_run(tmp_path, base, sweep_here):
    sweep = {
        "study": "depths",
        "base": [str(base)],
        "search": {"model.init_args.num_modality_layers": {"choices": [1, 2]}},
        "objectives": {"val/speech_ppl": "minimize", "val/text_ppl": "minimize"},
        "sampler": "grid",
        "heartbeat_sec": 5,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    first = start(tmp_path)
    kill_behind_a_checkpoint(first, tmp_path / "runs" / "depths" / "trial-000-seed-1")
    second = start(tmp_path)
    out, _ = second.communicate(timeout=240)
    assert second.returncode == 0, out
    assert "2 of 2 trials (2 complete), seeds [1]." in out
    assert "| 0 | 1 |" in out.replace("**", "")
    assert "complete | 2 |" in out  # two attempts of the first trial
    folders = sorted(p.name for p in (tmp_path / "runs" / "depths").iterdir())
    assert folders == ["trial-000-seed-1", "trial-001-seed-1"]

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("depths").experiment_id])
    parent = next(r for r in runs if r.info.run_name == "study")
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(r.info.run_name for r in children) == folders
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert {r.data.params["model.init_args.num_modality_layers"] for r in children} == {"1", "2"}
    stored = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert {"report.md", "pareto.png", "history_val_speech_ppl.png", "slice_val_text_ppl.png"} <= stored
    assert [m.step for m in client.get_metric_history(parent.info.run_id, "trial/val/speech_ppl")] == [0, 1]

    code, out = sweep_here()
    assert code == 0
    assert "trial 1/" not in out  # nothing left to run


@pytest.mark.nightly
def test_two_workers_prune_a_hopeless_trial(tmp_path, base):
    sweep = {
        "study": "rates",
        "base": [str(base)],
        "search": {"model.init_args.lr": {"choices": [1.0e-2, 3.0e-3, 1.0e-9]}},
        "objectives": {"val/speech_ppl": "minimize"},
        "sampler": "grid",
        "pruner": {"class_path": "optuna.pruners.MedianPruner", "init_args": {"n_startup_trials": 2}},
        "heartbeat_sec": 5,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    done = start(tmp_path, "--workers", "2", CUDA_VISIBLE_DEVICES="3,5")
    out, _ = done.communicate(timeout=240)
    assert done.returncode == 0, out
    assert "3 of 3 trials (2 complete, 1 pruned)" in out
    recipes = [path.read_text() for path in tmp_path.glob("runs/rates/*/fit.yaml")]
    assert len(recipes) == 3
    assert "PruneTrial" not in "".join(recipes)  # a run's recipe is the same outside of the sweep
    assert "| 2 | 1e-09 | – | pruned |" in out
    runs = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    devices = {run.data.tags.get("sweep.devices") for run in runs if "sweep.trial" in run.data.tags}
    assert devices == {"3", "5"}  # one GPU a worker: all trials were on the first before


@pytest.mark.parametrize(
    ("workers", "devices", "shares"),
    [
        (2, ["0", "1", "2", "3"], [["0", "1"], ["2", "3"]]),
        (3, ["4", "6", "7", "9"], [["4"], ["6"], ["7", "9"]]),
        (3, ["GPU-a", "GPU-b"], [["GPU-a"], ["GPU-b"], ["GPU-a"]]),
        (2, [], [[], []]),
    ],
)
def test_workers_share_the_visible_devices(workers, devices, shares):
    assert shares_of_devices(workers, devices) == shares


@pytest.mark.nightly
def test_a_misspelt_objective_stops_the_study_at_the_first_validation(tmp_path, base, sweep_here):
    """And the corrected name continues it; `validation: best` takes the best of the run's validations."""
    config = read_recipe([base])
    config["trainer"] |= {"max_steps": 6, "val_check_interval": 2}
    base.write_text(yaml.safe_dump(config))
    sweep = {
        "study": "misspelt",
        "base": [str(base)],
        "search": {"model.init_args.lr": {"choices": [1.0e-2]}},
        "objectives": {"val/speech_pl": "maximize"},
        "validation": "best",
        "sampler": "grid",
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    code, out = sweep_here()
    assert code == 2
    assert "no metric 'val/speech_pl', expected one of" in out.splitlines()[-1]
    assert "val/speech_ppl" in out.splitlines()[-1]
    folder = tmp_path / "runs" / "misspelt" / "trial-000-seed-1"
    assert RunFolder(folder).result()["step"] == 0  # stopped at its first validation, not run to its end

    sweep["objectives"] = {"val/speech_ppl": "maximize"}  # at its best in the first validation
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    code, out = sweep_here()
    assert code == 0, out
    result = RunFolder(folder).result()
    assert result["step"] == 6
    assert result["highest"]["val/speech_ppl"] > result["metrics"]["val/speech_ppl"]
    assert f"| {result['highest']['val/speech_ppl']:.4g} | complete |" in out


@pytest.mark.nightly
def test_a_bad_recipe_fails_its_trial_with_its_own_line(tmp_path, base, sweep_here):
    sweep = {
        "study": "bad",
        "base": [str(base)],
        "set": {"model.init_args.no_such_option": 1},
        "search": {"model.init_args.lr": {"choices": [1.0e-2]}},
        "objectives": {"val/speech_ppl": "minimize"},
        "sampler": "grid",
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    code, out = sweep_here()
    assert "1 of 1 trials (1 fail)" in out
    assert "no_such_option" in out
    assert code == 2
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("words", "message"), [(["-c", "none.yaml"], "no configuration"), (["--workers", "0"], "--workers is 0")]
)
def test_mistakes_are_one_line(tmp_path, base, words, message, sweep_here):
    (tmp_path / "sweep.yaml").write_text(
        f"{{study: s, base: ['{base}'], search: {{model.init_args.lr: {{choices: [1.0]}}}}, sampler: grid, "
        "objectives: {val/loss: minimize}}"
    )
    code, out = sweep_here(*words)
    assert code == 2
    assert message in out.splitlines()[-1]
