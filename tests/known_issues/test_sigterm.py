"""SIGTERM ended a run after its last checkpoint: all steps since were lost.

With several micro-batches a step it came between two of them, in most cases, and nothing was written. So did
one to the sweep or study that had started it, whose runs ended within half a second, and Ctrl-C there.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recording import assert_equal, checkpoints, curves, fit, fit_in_process, recipe, seen

from lit_moss.runs.launch import RunError, run_fit
from lit_moss.runs.recipes import read_recipe

ROOT = Path(__file__).resolve().parents[2]
START = (
    "import json; from pathlib import Path; from lit_moss.runs.launch import run_fit; "
    "run_fit(json.loads(Path('config.json').read_text()), Path('runs/study/a'))"
)


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "micro_batch", "saved"), [(1, 0, 7), (2, 0, 7), (4, 2, 8)])
def test_sigterm_writes_the_state_and_the_next_run_loses_no_step(
    tmp_path, corpus, accumulate, micro_batch, saved
):
    changes = {"trainer__accumulate_grad_batches": accumulate}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(whole, recipe(whole, corpus, 12, **changes))
    at = {"step": 7, "micro_batch": micro_batch}
    term = [{"class_path": "recording.TermAt", "init_args": at}]
    path = recipe(stopped, corpus, 12, **changes, **{"trainer__callbacks+": term})
    done = fit_in_process(stopped, path)
    assert done.returncode == 143, done.stderr[-2000:]
    assert "the state is saved: resume with --ckpt_path last" in done.stderr
    assert max(c["global_step"] for c in checkpoints(stopped).values()) == saved
    fit(stopped, recipe(stopped, corpus, 12, **changes), "--ckpt_path", "last")
    ours, theirs = checkpoints(stopped)["step-0000010.ckpt"], checkpoints(whole)["step-0000010.ckpt"]
    for part in ("state_dict", "optimizer_states", "random_states", "SpeechDataModule"):
        assert_equal(ours[part], theirs[part], part)
    assert curves(stopped) == curves(whole)
    assert seen(stopped)[-1] == seen(whole)[-1]


@pytest.mark.nightly
def test_a_run_without_checkpoints_does_not_say_that_its_state_is_saved(tmp_path, corpus):
    term = [{"class_path": "recording.TermAt", "init_args": {"step": 3}}]
    done = fit_in_process(tmp_path, recipe(tmp_path, corpus, 12, trainer__callbacks=term))
    assert done.returncode == 143, done.stderr[-2000:]
    assert "stopped by SIGTERM; no state was saved" in done.stderr


def _terminating(folder: Path, corpus: Path, whom: str) -> dict:
    """A recipe with a SIGTERM in step 7 and no checkpoint before step 10."""
    folder.mkdir()
    term = [{"class_path": f"recording.{whom}", "init_args": {"step": 7}}]
    config = json.loads(
        json.dumps(read_recipe([recipe(folder, corpus, 12, **{"trainer__callbacks+": term})]))
    )
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"] == "callbacks.Checkpoint" and "every_n_steps" in callback["init_args"]:
            callback["init_args"]["every_n_steps"] = 10
    return config


@pytest.mark.nightly
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_program_that_is_stopped_lets_its_run_write_the_state(tmp_path, corpus, monkeypatch, sent):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("LIT_MOSS_SENT", str(int(sent)))
    config = _terminating(tmp_path / "base", corpus, "TermParentAt")
    Path("config.json").write_text(json.dumps(config))
    started = subprocess.run([sys.executable, "-c", START], timeout=120, start_new_session=True)
    assert started.returncode == -sent
    folder = tmp_path / "runs" / "study" / "a"
    assert run_fit(config, folder)["step"] == 12  # at once: it waits for the run that still writes
    log = (folder / "log.txt").read_text()
    assert "stopped by SIGTERM, the state is saved" in log
    assert "step-0000007.ckpt" in log.partition("Restoring states")[2].splitlines()[0]


@pytest.mark.nightly
def test_a_run_that_gets_it_alone_counts_as_killed(tmp_path, corpus, monkeypatch):
    """As one by -9 does: the study or sweep may continue it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    config = _terminating(tmp_path / "base", corpus, "TermAt")
    folder = tmp_path / "runs" / "study" / "a"
    with pytest.raises(RunError, match="exit code 143") as stopped:
        run_fit(config, folder)
    assert stopped.value.killed
    assert run_fit(config, folder)["step"] == 12
