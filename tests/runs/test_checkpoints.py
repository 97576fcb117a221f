"""Checkpoint files: chosen only whole, written whole or not at all, read as data."""

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_moss.errors import UserError
from lit_moss.runs.checkpoint_io import AtomicCheckpointIO
from lit_moss.runs.checkpoints import newest_checkpoint


def state(step):
    return {"global_step": step, "state_dict": {"w": torch.full((50,), float(step))}}


def run_folder(root, name="2026-01-01_00-00-00", steps=(), best=None):
    folder = root / "tiny" / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": f"id-of-{name}"}))
    io = AtomicCheckpointIO()
    for step in steps:
        io.save_checkpoint(state(step), folder / "checkpoints" / f"step-{step:07d}.ckpt")
    if best is not None:
        io.save_checkpoint(state(best), folder / "checkpoints" / "best.ckpt")
    return folder


def step_of(path):
    return AtomicCheckpointIO().load_checkpoint(path)["global_step"]


# Which one is taken.


def test_last_is_the_highest_step_of_the_newest_run_and_best_its_best(tmp_path, capsys):
    run_folder(tmp_path, "2026-01-01_00-00-00", [5000], best=4000)
    run_folder(tmp_path, "2026-01-02_00-00-00", [5, 900, 1000], best=900)
    (tmp_path / "tiny" / "2026-01-03_00-00-00").mkdir()  # no run.json: no run
    assert step_of(newest_checkpoint(tmp_path / "tiny", "last")) == 1000
    assert step_of(newest_checkpoint(tmp_path / "tiny", "best")) == 900
    assert capsys.readouterr().err == ""


def test_a_save_that_was_killed_is_never_chosen(tmp_path):
    folder = run_folder(tmp_path, steps=[5])
    whole = (folder / "checkpoints" / "step-0000005.ckpt").read_bytes()
    (folder / "checkpoints" / "step-0000010.ckpt.partial").write_bytes(whole[:100])
    assert step_of(newest_checkpoint(tmp_path / "tiny", "last")) == 5


@pytest.mark.parametrize("damage", ["empty", "half", "one bit", "end missing", "text"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, capsys, damage):
    newest = run_folder(tmp_path, steps=[5, 10, 15]) / "checkpoints" / "step-0000015.ckpt"
    data = bytearray(newest.read_bytes())
    at = data.index(torch.full((50,), 15.0).numpy().tobytes())
    data[at + 100] ^= 1
    newest.write_bytes(
        {
            "empty": b"",
            "half": newest.read_bytes()[: len(data) // 2],
            "one bit": bytes(data),
            "end missing": newest.read_bytes()[:-1],
            "text": b"a page of a proxy",
        }[damage]
    )
    assert step_of(newest_checkpoint(tmp_path / "tiny", "last")) == 10
    (line,) = capsys.readouterr().err.splitlines()
    assert str(newest) in line
    assert "damaged" in line


@pytest.mark.slow
def test_one_flipped_bit_anywhere_is_harmless_or_found(tmp_path, capsys):
    path = run_folder(tmp_path, steps=[5, 10]) / "checkpoints" / "step-0000010.ckpt"
    whole = path.read_bytes()
    rng = random.Random(0)
    # All of the directory at the end, where zipfile is least careful, and a sample of the rest.
    directory = whole.index(b"PK\x01\x02")
    bits = [rng.randrange(8 * directory) for _ in range(300)]
    bits += [8 * byte + rng.randrange(8) for byte in range(directory, len(whole))]
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        chosen = newest_checkpoint(tmp_path / "tiny", "last")
        if chosen == path:
            found = AtomicCheckpointIO().load_checkpoint(path)
            assert found["global_step"] == 10, bit
            assert torch.equal(found["state_dict"]["w"], state(10)["state_dict"]["w"]), bit
        else:
            assert step_of(chosen) == 5, bit
    assert "damaged" in capsys.readouterr().err


def test_no_whole_checkpoint_and_no_run_are_errors_that_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no run in .*tiny to take `last` from"):
        newest_checkpoint(tmp_path / "tiny", "last")
    folder = run_folder(tmp_path, steps=[5])
    with pytest.raises(UserError, match=r"no whole checkpoint for `best`: give --ckpt_path FILE"):
        newest_checkpoint(tmp_path / "tiny", "best")
    (folder / "checkpoints" / "step-0000005.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="no whole checkpoint for `last`"):
        newest_checkpoint(tmp_path / "tiny", "last")


def test_a_run_killed_before_its_first_checkpoint_starts_again_as_the_same_run(tmp_path, capsys):
    folder = run_folder(tmp_path)
    assert newest_checkpoint(tmp_path / "tiny", "last") == (folder, "id-of-2026-01-01_00-00-00")
    assert "no checkpoint yet: starting it again from step 0" in capsys.readouterr().err


# Writing.


def test_what_is_saved_is_loaded_and_no_other_file_is_left(tmp_path):
    io = AtomicCheckpointIO()
    path = tmp_path / "new" / "folder" / "a.ckpt"
    io.save_checkpoint(state(3), path)
    io.save_checkpoint(state(4), path)
    assert step_of(path) == 4
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


# What fails is tried in processes of their own, forked from one with its imports done: without rights they
# could not import, and this one has threads that a fork would not take along (it hung).
SAVES = """
import json, os, resource, signal, sys
import torch
from lit_moss.runs.checkpoint_io import AtomicCheckpointIO
from lit_moss.errors import UserError

content = {"w": torch.zeros(500_000)}

def small_files():  # fails like a full disk, in the midst of a write
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

def killed_at_the_limit():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    small_files()

def no_rights():  # root may write anywhere
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

for folder, before, target in json.loads(sys.argv[1]):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "saved"
        try:
            os.chdir(folder)
            globals().get(before, lambda: None)()
            AtomicCheckpointIO().save_checkpoint(content, target)
        except UserError as error:
            said = f"UserError: {error}"
        except BaseException as error:
            said = repr(error)
        os.write(write_end, said.encode())
        os._exit(0)
    os.close(write_end)
    _, status = os.waitpid(pid, 0)
    said = "killed" if os.WIFSIGNALED(status) else os.fdopen(read_end).read()
    print(json.dumps(said))
"""
CASES = {
    "plain": ("plain", "a.ckpt"),
    "full disk": ("small_files", "a.ckpt"),
    "killed": ("killed_at_the_limit", "a.ckpt"),
    "read-only folder": ("no_rights", "a.ckpt"),
    "folder below a read-only one": ("no_rights", "checkpoints/a.ckpt"),
}


@pytest.fixture(scope="module")
def saves(tmp_path_factory):
    """Case -> (folder with an earlier a.ckpt, what the attempt to save over it said)."""
    folders = {case: tmp_path_factory.mktemp("saves") for case in CASES}
    for folder in folders.values():
        AtomicCheckpointIO().save_checkpoint(state(7), folder / "a.ckpt")
    for case, (before, _) in CASES.items():
        if before == "no_rights":
            folders[case].chmod(0o555)
    todo = json.dumps([(str(folders[case]), *CASES[case]) for case in CASES])
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", SAVES, todo]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    for folder in folders.values():
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    said = map(json.loads, done.stdout.splitlines())
    return {case: (folders[case], words) for case, words in zip(CASES, said, strict=True)}


@pytest.mark.nightly
def test_a_save_in_a_process_of_its_own_works(saves):
    folder, said = saves["plain"]
    assert said == "saved"
    assert (folder / "a.ckpt").stat().st_size > 2_000_000


@pytest.mark.parametrize("case", ["full disk", "read-only folder", "folder below a read-only one"])
def test_a_failed_save_is_an_error_and_the_earlier_file_stays_whole(saves, case):
    folder, said = saves[case]
    assert said.startswith(f"UserError: the checkpoint {CASES[case][1]} could not be written")
    assert case == "full disk" or "Permission denied" in said
    assert "\n" not in said
    assert step_of(folder / "a.ckpt") == 7
    assert [p.name for p in folder.iterdir()] == ["a.ckpt"]


def test_killed_while_saving_the_old_file_stays_whole(saves):
    folder, said = saves["killed"]
    assert said == "killed"
    assert step_of(folder / "a.ckpt") == 7


# Reading.


class Payload:
    """What an attacker's object would do while it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "the payload ran"))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, kind):
    path, mark = tmp_path / "evil.ckpt", tmp_path / "mark"
    content = {"state_dict": {}, "callbacks": Payload(mark)}
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for weights_only in (None, True, False):
        with pytest.raises(UserError, match=r"evil\.ckpt"):
            AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert not mark.exists()
    torch.load(path, weights_only=False) if kind == "torch" else pickle.loads(path.read_bytes())
    assert mark.exists()  # it was malicious
