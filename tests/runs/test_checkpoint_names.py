"""What a user's name stands for: a checkpoint, a run's folder, a name's runs, or something else."""

import json

import pytest
import torch

from lit_moss.errors import UserError
from lit_moss.runs.checkpoint_io import AtomicCheckpointIO
from lit_moss.runs.checkpoints import checkpoint_of


def begin_run(folder, *files):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": "x"}))
    for file in files:
        state = {"global_step": 5, "state_dict": {"w": torch.zeros(2)}}
        AtomicCheckpointIO().save_checkpoint(state, folder / "checkpoints" / file)
    return folder


def test_a_run_and_a_name_stand_for_their_checkpoints(tmp_path):
    run = begin_run(tmp_path / "tiny" / "one", "step-0000005.ckpt", "best.ckpt")
    best, last = (run / "checkpoints" / name for name in ("best.ckpt", "step-0000005.ckpt"))
    assert checkpoint_of(run) == checkpoint_of(run.parent) == checkpoint_of(str(best)) == best
    assert checkpoint_of(run, "last") == checkpoint_of(run.parent, "last") == last


def test_other_names_stand_for_no_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name in (tmp_path, tmp_path / "gone", "owner/model", "embedded:whisper-tiny"):
        assert checkpoint_of(name) is None


@pytest.mark.parametrize(
    ("which", "message"), [("best", "no whole checkpoint"), ("last", "no checkpoint yet")]
)
def test_a_run_without_a_checkpoint_is_an_error(tmp_path, which, message):
    begin_run(tmp_path / "tiny" / "one")
    with pytest.raises(UserError, match=message):
        checkpoint_of(tmp_path / "tiny", which)
