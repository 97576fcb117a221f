"""Idle workers were ended with `os._exit`, and Python warned of leaked semaphores: tqdm has one."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.nightly
def test_workers_that_are_done_leave_nothing(tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"id": f"t{i}", "text": "abcd"}) + "\n" for i in range(4)))
    paths = [str(ROOT), str(ROOT / "tests" / "prepare")]
    command = [sys.executable, "-m", "lit_moss", "prepare", "counting.BarStage", str(source)]
    command += ["--out", str(tmp_path / "out"), "--workers", "2", "--shard_items", "1", "--track", "false"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "leaked" not in run.stderr
