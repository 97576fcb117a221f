"""After a resume with gradient accumulation a second checkpoint of the same step was written at once.

It came between two micro-batches, without the gradient gathered so far, and logged metrics too early.
"""

import pytest
from recording import curves, recipe

from lit_moss.cli.main import main

pytestmark = pytest.mark.nightly


def test_a_resumed_run_saves_at_whole_steps_alone(tmp_path, corpus, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"trainer__accumulate_grad_batches": 2, "trainer__val_check_interval": 100}
    assert main(["fit", "-c", str(recipe(tmp_path, corpus, 5, **changes))]) == 0
    (saved,) = tmp_path.glob("runs/tiny/*/checkpoints/step-0000005.ckpt")
    written = saved.stat().st_mtime_ns
    assert main(["fit", "-c", str(recipe(tmp_path, corpus, 6, **changes)), "--ckpt_path", "last"]) == 0
    assert saved.stat().st_mtime_ns == written
    assert [step for step, _ in curves(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5, 6]
