"""Runs begun, continued and left alone by a program."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lm_recipe import lm_recipe
from recording import kill_behind_a_checkpoint

from lit_moss.errors import UserError
from lit_moss.files import write_json
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.launch import RunError, run_fit
from lit_moss.runs.recipes import read_recipe, set_key

ROOT = Path(__file__).resolve().parents[2]


def plain_recipe(folder: Path, steps: int) -> dict:
    """A tiny run without the recording callbacks of other tests."""
    config = read_recipe([lm_recipe(folder, steps)])
    callbacks = config["trainer"]["callbacks"]
    config["trainer"]["callbacks"] = [c for c in callbacks if not c["class_path"].startswith("recording")]
    return config


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    config = read_recipe([ROOT / "conf" / "stage1.yaml"])
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    result = {"step": 150, "stopped": None, "run_id": "x", "metrics": {"val/loss": 1.0}}
    write_json(tmp_path / "result.json", result)
    assert run_fit(config, tmp_path) == result
    set_key(config, "model.init_args.lr", 9.0)
    with pytest.raises(UserError, match=r"was begun with model.init_args.lr 0.001, now it is 9.0"):
        run_fit(config, tmp_path)


def test_two_elements_of_a_class_are_compared_by_place(tmp_path):
    config = read_recipe([ROOT / "conf" / "stage1.yaml"])
    config["data"]["init_args"]["parts"] *= 2
    config = json.loads(json.dumps(config))
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    set_key(config, "data.init_args.parts.0.init_args.train", ["other.jsonl"])
    with pytest.raises(UserError, match=r"parts.0 .*train"):
        run_fit(config, tmp_path)


@pytest.mark.nightly
def test_a_run_is_continued_after_a_kill_and_left_alone_when_done(tmp_path, monkeypatch):
    """The program that starts the run is killed with -9: the run ends too, and the next call continues it to
    the same weights as an uninterrupted run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    config = plain_recipe(tmp_path / "base", 40)
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "import json; from pathlib import Path; from lit_moss.runs.launch import run_fit; "
        "run_fit(json.loads(Path('config.json').read_text()), Path('runs/study/a'), {'sweep.trial': '0'})"
    )
    starter = subprocess.Popen([sys.executable, "-c", code])
    folder = tmp_path / "runs" / "study" / "a"
    kill_behind_a_checkpoint(starter, folder)
    time.sleep(1.5)
    assert (RunFolder(folder).result() or {"step": 0})["step"] == 0  # the run has ended with its starter
    result = run_fit(config, folder)
    assert result["step"] == 40
    assert result["stopped"] is None
    assert "val/speech_ppl" in result["metrics"]
    assert "Restoring states" in (folder / "log.txt").read_text()
    log = (folder / "log.txt").stat()
    assert run_fit(config, folder) == result
    assert (folder / "log.txt").stat() == log  # nothing was started
    # Killed after the last checkpoint, before its end was written: it does not validate again when continued.
    write_json(folder / "result.json", result | {"step": 0})
    assert run_fit(config, folder) == result
    whole = run_fit(config, tmp_path / "runs" / "study" / "b")
    weights = [
        torch.load(tmp_path / f"runs/study/{name}/checkpoints/step-0000040.ckpt", weights_only=True)[
            "state_dict"
        ]
        for name in "ab"
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    same = [k for k in result["metrics"] if k.startswith(("val/", "train/l"))]
    assert {k: result["metrics"][k] for k in same} == {k: whole["metrics"][k] for k in same}

    with pytest.raises(RunError, match=r"exit code 2, error: .*max_steps"):
        run_fit(
            config | {"trainer": config["trainer"] | {"max_steps": -3}}, tmp_path / "runs" / "study" / "c"
        )
