"""A logger in `trainer.logger` replaced the run's own, and its checkpoints were found by nothing.

They were in csv/lightning_logs/version_0, there was no run in MLflow, and `--ckpt_path last` and `export`
found none. A logger whose library is not installed was a traceback.
"""

import csv
from importlib.util import find_spec

import pytest
from lm_recipe import lm_recipe
from recording import fit, losses, mlflow_runs

CSV = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv")


def table(path):
    """Step -> training loss, of every row that has one."""
    with path.open() as file:
        return [(int(r["step"]), float(r["train/loss"])) for r in csv.DictReader(file) if r["train/loss"]]


@pytest.mark.slow
def test_a_given_logger_is_used_beside_mlflow(tmp_path):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 6), *CSV, "--run_name", "first")
    checkpoints = sorted(p.name for p in (folder / "runs/tiny/first/checkpoints").iterdir())
    assert checkpoints == ["last.ckpt", "step-0000005.ckpt"]
    assert not list((folder / "csv").rglob("*.ckpt"))
    (run_id,) = mlflow_runs(folder)
    noted = table(folder / "csv/lightning_logs/version_0/metrics.csv")
    assert [step for step, _ in noted] == [1, 2, 3, 4, 5, 6]  # the step of a checkpoint once too
    assert dict(noted) == pytest.approx(dict(losses(folder, run_id)))
    fit(folder, lm_recipe(folder, 8), *CSV, "--ckpt_path", "last")
    assert [step for step, _ in losses(folder, run_id)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert list(mlflow_runs(folder)) == [run_id]


@pytest.mark.slow
def test_a_list_of_loggers_is_taken_too(tmp_path):
    folder = tmp_path / "run"
    names = [{"class_path": "CSVLogger", "init_args": {"save_dir": name}} for name in ("one", "two")]
    fit(folder, lm_recipe(folder, 2), "--trainer.logger", str(names))
    assert all((folder / name / "lightning_logs/version_0/metrics.csv").is_file() for name in ("one", "two"))
    assert len(mlflow_runs(folder)) == 1


@pytest.mark.slow
def test_without_a_logger_there_is_no_run(tmp_path):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 5), "--trainer.logger", "false")
    assert not (folder / "runs").exists()
    assert (folder / "checkpoints/step-0000005.ckpt").is_file()


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("wandb", ("--trainer.logger", "WandbLogger")),
        ("wandb", ("--trainer.logger", "[{class_path: WandbLogger}]")),
        ("tensorboard", ("--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "tb")),
    ],
)
def test_a_logger_without_its_library_is_one_line(tmp_path, capsys, library, words):
    if find_spec(library) or (library == "tensorboard" and find_spec("tensorboardX")):
        pytest.skip(f"{library} is installed")
    folder = tmp_path / "run"
    path = lm_recipe(folder, 2)
    capsys.readouterr()
    fit(folder, path, *words, expected=2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: lightning.pytorch.loggers.")
    assert "needs a library that is not installed" in line
    assert library in line
    assert not (folder / "runs").exists()
