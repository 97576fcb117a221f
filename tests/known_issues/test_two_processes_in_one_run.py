"""`--ckpt_path last` while that run was still training put two processes into one folder, each deleting the
other's checkpoints."""

import subprocess
import sys

import pytest
from recording import ROOT, checkpoints, fit, recipe

HOLD = """
import sys; from pathlib import Path; from lit_moss.runs.folder import RunFolder
held = RunFolder(Path(sys.argv[1])).hold(); print("held", flush=True); sys.stdin.read()
"""


@pytest.mark.nightly
def test_a_run_that_goes_on_is_not_continued_by_another_process(tmp_path, corpus, capsys):
    fit(tmp_path, recipe(tmp_path, corpus, 5))
    (run,) = (tmp_path / "runs/tiny").iterdir()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    fit(tmp_path, recipe(tmp_path, corpus, 8), "--ckpt_path", "last", expected=2)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: another process is training the run")
    assert str(run) in said
    other.communicate("")
    fit(tmp_path, recipe(tmp_path, corpus, 8), "--ckpt_path", "last")
    assert max(saved["global_step"] for saved in checkpoints(tmp_path).values()) == 8
