"""A moved or copied run that was resumed forgot its best score, and a worse state overwrote `best.ckpt`."""

import shutil

import pytest
import yaml
from lm_recipe import lm_recipe
from recording import fit, losses, mlflow_runs

from lit_moss.runs.checkpoints import load_checkpoint
from lit_moss.runs.folder import RunFolder

BEST = {"class_path": "callbacks.Checkpoint", "init_args": {"monitor": "val/loss"}}
STEPS = {"class_path": "callbacks.Checkpoint", "init_args": {"every_n_steps": 4, "keep": 1}}
MONITORS = {"min": "val/loss", "max": "val/speech_accuracy"}


def config_of(folder, steps, **monitor):
    best = BEST | {"init_args": BEST["init_args"] | monitor}
    path = lm_recipe(folder, steps, extra=[best])
    config = yaml.safe_load(path.read_text())
    callbacks = [c for c in config["trainer"]["callbacks"] if "every_n_steps" not in c.get("init_args", {})]
    config["trainer"] |= {"val_check_interval": 4, "callbacks": [*callbacks, STEPS]}
    path.write_text(yaml.safe_dump(config))
    return path


WORSE = ("--model.init_args.lr", "1.0")  # destroys the model within a step


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("how", "mode"),
    [
        ("moved", "min"),
        ("moved", "max"),
        ("copied", "min"),
        ("moved with its root", "max"),
        ("linked", "min"),
    ],
)
def test_best_is_not_overwritten_by_a_worse_state(tmp_path, how, mode):
    folder, monitor = tmp_path / "run", {"mode": mode, "monitor": MONITORS[mode]}
    fit(folder, config_of(folder, 8, **monitor))
    (run,) = (folder / "runs" / "tiny").iterdir()
    kept = (run / "checkpoints" / "best.ckpt").read_bytes()
    if how == "moved":
        new = run.rename(run.with_name("elsewhere"))
    elif how == "copied":
        new = shutil.copytree(run, run.with_name("copy"))
    elif how == "moved with its root":
        new = (folder / "runs").rename(folder / "old") / "tiny" / run.name
    else:
        (folder / "link").symlink_to(folder / "runs")
        new = folder / "link" / "tiny" / run.name
    fit(folder, config_of(folder, 16, **monitor), *WORSE, "--ckpt_path", str(new))
    assert (new / "checkpoints" / "best.ckpt").read_bytes() == kept
    # Old states are still removed, but for the one that was resumed from.
    states = sorted(p.name for p in (new / "checkpoints").glob("step-*"))
    assert states == ["step-0000008.ckpt", "step-0000016.ckpt"]
    (record,) = mlflow_runs(folder)
    assert [step for step, _ in losses(folder, record)] == list(range(1, 17))


@pytest.mark.nightly
@pytest.mark.parametrize("first", ["the copy", "the original"])
def test_a_copy_and_its_original_that_both_go_on_have_a_record_each(tmp_path, capfd, first):
    folder = tmp_path / "run"
    fit(folder, config_of(folder, 4))
    (run,) = (folder / "runs" / "tiny").iterdir()
    copy = shutil.copytree(run, run.with_name("copy"))
    order = (copy, run) if first == "the copy" else (run, copy)
    fit(folder, config_of(folder, 8), "--ckpt_path", str(order[0]))
    fit(folder, config_of(folder, 8), "--ckpt_path", str(order[1]), *WORSE)
    assert "is recorded in a new MLflow run" in capfd.readouterr().err
    runs, ids = mlflow_runs(folder), [RunFolder(p).mlflow_run_id for p in order]
    assert set(runs) == set(ids)
    assert ids[0] in runs[ids[1]].data.tags["forked_from"]
    assert [[step for step, _ in losses(folder, i)] for i in ids] == [list(range(1, 9)), list(range(5, 9))]


@pytest.mark.nightly
def test_without_its_best_file_a_moved_run_takes_the_next_best(tmp_path):
    folder = tmp_path / "run"
    fit(folder, config_of(folder, 8))
    (run,) = (folder / "runs" / "tiny").iterdir()
    new = run.rename(run.with_name("elsewhere"))
    (new / "checkpoints" / "best.ckpt").unlink()
    fit(folder, config_of(folder, 12), *WORSE, "--ckpt_path", str(new))
    assert load_checkpoint(new / "checkpoints" / "best.ckpt")["global_step"] == 12
