"""Checkpoints of two ranks by FSDP2 and DeepSpeed: read as data, one tensor at a time, and exported."""

import os
import pickle
import shutil

import pytest
import sharded_runs
import torch
from safetensors.torch import load_file

from lit_moss.cli.choose_run import find_start
from lit_moss.data.conversation import PAIRS, Renderer, Turn
from lit_moss.errors import UserError
from lit_moss.hub import open_lm
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer
from lit_moss.release.export import export
from lit_moss.release.import_model import import_model
from lit_moss.runs.checkpoints import WHOLE, load_checkpoint, open_checkpoint, seal_folder


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.nightly
def test_weights_of_two_ranks_are_read_exported_and_refused_where_they_hold_code(tmp_path):
    sharded_runs.train_all(tmp_path)
    for strategy in sharded_runs.STRATEGIES:
        folder = tmp_path / strategy
        held = torch.load(folder / "weights.pt", weights_only=True)
        newest = sorted((folder / "runs/tiny/run/checkpoints").glob("step-*.ckpt"))[-1]
        assert newest.is_dir()
        weights_are_those_that_the_ranks_held(newest, held, strategy)
        a_mean_of_states(folder)
        greedy_replies_are_the_same(folder)
        a_rank_that_did_not_save_is_one_line(newest, folder)
        code_in_a_file_is_refused(newest, folder)
        assert find_start(str(newest), folder, "fit") == newest
        import_model(str(folder / "runs/out"), folder / "imported")
    for strategy, again in zip(sharded_runs.STRATEGIES, sharded_runs.tune_all(tmp_path), strict=True):
        made_again = export(str(again / "runs/tiny"), again / "runs/out").folder
        ours, theirs = (
            load_file(f / "model.safetensors") for f in (made_again, tmp_path / strategy / "runs/out")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), strategy
        greedy_replies_are_the_same(again)


def weights_are_those_that_the_ranks_held(newest, held, strategy):
    ours = open_checkpoint(newest).tensors
    assert ours.keys() == {f"lm.{name}" for name in held}, strategy
    whole = load_checkpoint(newest)["state_dict"]
    for name, value in held.items():
        stored = ours[f"lm.{name}"]
        assert (stored.shape, stored.dtype) == (tuple(value.shape), value.dtype), (strategy, name)
        assert torch.equal(stored.read(), value), (strategy, name)
        assert torch.equal(whole[f"lm.{name}"], value), (strategy, name)
    exported = export(str(newest), newest.parents[3] / "out").folder
    written = load_file(exported / "model.safetensors")
    assert written.keys() == held.keys()
    assert all(torch.equal(written[name], value) for name, value in held.items()), strategy


def a_mean_of_states(folder):
    states = sorted((folder / "runs/tiny/run/checkpoints").glob("step-*.ckpt"))[-2:]
    export(str(folder / "runs/tiny"), folder / "mean", average=2)
    parts = [load_checkpoint(state)["state_dict"] for state in states]
    for name, value in load_file(folder / "mean/model.safetensors").items():
        mean = (parts[0][f"lm.{name}"].double() + parts[1][f"lm.{name}"].double()) / 2
        torch.testing.assert_close(value.double(), mean, atol=1e-7, rtol=0)


def greedy_replies_are_the_same(folder):
    exported = folder / "runs/out"
    before, after = open_lm(folder / "runs/tiny"), SplitLM.from_pretrained(exported)
    renderer = Renderer(load_text_tokenizer(exported), after.format)
    for user, reply in PAIRS.values():
        rows = renderer.prompt([Turn("user", "abcdef", [1, 4, 13, 8])], user, reply)
        replies = [lm.generate([rows], max_new_tokens=32, greedy=True) for lm in (before, after)]
        assert replies[0] == replies[1], (folder.name, user, reply)


def seal(folder):
    (folder / WHOLE).unlink()
    seal_folder(folder)


def a_rank_that_did_not_save_is_one_line(newest, folder):
    lost = [f for f in newest.rglob("*rank_1*optim_states.pt")] or [newest / "__1_0.distcp"]
    harmed = newest.with_name("harmed.ckpt")
    shutil.copytree(newest, harmed)
    (harmed / lost[0].relative_to(newest)).unlink()
    seal(harmed)
    with pytest.raises(UserError, match=r"a rank did not save|cannot be read as data"):
        export(str(harmed), folder / "never")
    assert not (folder / "never").exists()
    shutil.rmtree(harmed)


def code_in_a_file_is_refused(newest, folder):
    """Every file of the checkpoint that is unpickled, one after another, with a payload in it."""
    harmed = newest.with_name("harmed.ckpt")
    files = [f.relative_to(newest) for f in newest.rglob("*") if f.suffix in (".pt", "") and f.is_file()]
    pickled = [f for f in files if f.suffix == ".pt" or f.name == ".metadata"]
    assert len(pickled) >= 2
    for file in pickled:
        ran = folder / "ran"
        shutil.copytree(newest, harmed)
        if file.suffix == ".pt":
            torch.save({"state_dict": {}, "x": Payload(ran)}, harmed / file)
        else:
            (harmed / file).write_bytes(pickle.dumps(Payload(ran)))
        seal(harmed)
        openers = (
            load_checkpoint,
            lambda path: export(str(path), folder / "never"),
            lambda path: find_start(str(path), folder, "fit"),
        )
        for open_one in openers:
            with pytest.raises(UserError, match="cannot be read as data"):
                open_one(harmed)
        assert not ran.exists()
        assert not (folder / "never").exists()
        shutil.rmtree(harmed)
