"""Checkpoint files: written atomically, read as data only, found by name.

Sharded strategies (FSDP2, DeepSpeed) write a folder, in which each rank writes its own files. Such a folder
is complete if it contains `WHOLE`, which lists all its files with their sizes and is written last.
"""

import hashlib
import json
import os
import shutil
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lit_moss.errors import UserError
from lit_moss.files import atomic_write, write_json
from lit_moss.runs import stored
from lit_moss.runs.folder import RunFolder

SEAL = 64  # hex digits of a sha256
WHOLE = "whole.json"
STEP = "step.txt"  # in a folder of shards: number of optimizer steps done
LAST = "last.ckpt"  # final state of a run, unless it was written as one of the regular ones


def _digest(file: BinaryIO, size: int) -> str:
    """sha256 of the first `size` bytes, in hex digits."""
    file.seek(0)
    digest = hashlib.sha256()
    while size:
        block = file.read(min(size, 1 << 20))
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


def seal_file(file: BinaryIO) -> None:
    """Appends the sha256 of the archive as its comment, which zip readers ignore."""
    size = file.seek(0, os.SEEK_END) - 2  # the archive ends with the comment's length, two bytes
    digest = _digest(file, size)
    file.seek(size)
    file.write(struct.pack("<H", SEAL) + digest.encode())


def seal_folder(folder: Path) -> None:
    """Marks a folder of shards as complete; call it after all ranks have written."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    write_json(folder / WHOLE, {str(f.relative_to(folder)): f.stat().st_size for f in files})


def _is_whole_folder(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / WHOLE).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


# Files that were found whole, with inode, size and time of modification. A resume asks up to three times, and
# a checkpoint of 8B parameters with its optimizer's state takes minutes to read.
_WHOLE: set[tuple[str, int, int, int]] = set()


def is_whole(path: Path, sealed: bool = False) -> bool:
    """Whether a checkpoint is undamaged.

    A file is verified by its seal, or without a seal by the checksums of its archive; a folder by the sizes
    of its files.

    Args:
        path: The file or folder.
        sealed: Treat a file without a seal as damaged; all lit_moss runs write one.
    """
    if path.is_dir():
        return _is_whole_folder(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SEAL - 2))
            end = file.read()
            if end[:2] == struct.pack("<H", SEAL):
                state = os.fstat(file.fileno())
                read_before = (str(path.resolve()), state.st_ino, state.st_size, state.st_mtime_ns)
                if read_before in _WHOLE:
                    return True
                whole = _digest(file, size - SEAL - 2).encode() == end[2:]
                if whole:
                    _WHOLE.add(read_before)
                return whole
        if sealed:
            return False
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # a damaged archive may raise any exception
        return False


def load_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Loads a checkpoint as data; for a folder of shards, gathered weights and the model's settings.

    Raises:
        UserError: if it is damaged, contains code, or is not a Lightning checkpoint.
    """
    if not is_whole(path):
        raise _damaged(path)
    if path.is_dir():
        with torch.device("cpu"):  # also while a strategy builds its model on a GPU
            checkpoint = stored.open_folder(path)
            weights = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
        return {"state_dict": weights, **checkpoint.settings}
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as data ({type(error).__name__}); files that hold code are not opened: "
            "expected a checkpoint written by `fit`"
        ) from error
    return checkpoint


def open_checkpoint(path: Path) -> stored.Stored:
    """Opens a checkpoint whose tensors are read one at a time, on request.

    Raises:
        UserError: if it is damaged, contains code, or is not a checkpoint.
    """
    if not is_whole(path):
        raise _damaged(path)
    return stored.open_folder(path) if path.is_dir() else stored.open_file(path)


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or no checkpoint: take another, or --ckpt_path last")


def newest_checkpoint(folder: Path, which: str, end: bool = True) -> Path | tuple[Path, str | None]:
    """The newest (`last`) or `best` undamaged checkpoint of the newest run below `folder`.

    A damaged file is skipped with a warning. For a run that was killed before its first checkpoint, returns
    (run folder, MLflow run id): it starts again from step 0 and continues the same MLflow run.

    Args:
        folder: Folder of the runs, RUN_ROOT/NAME.
        which: `last` or `best`.
        end: Whether `last` may be the final state of a run, `last.ckpt`, in addition to those written every n
            steps.

    Raises:
        UserError: if there is no run, or all of its checkpoints are damaged.
    """
    runs = RunFolder.all_in(folder)
    if not runs:
        raise UserError(
            f"no run in {folder} to take `{which}` from: expected one made by `fit` of the same name"
        )
    return newest_of_run(runs[-1].path, which, end)


def newest_of_run(folder: Path, which: str, end: bool = True) -> Path | tuple[Path, str | None]:
    """As `newest_checkpoint`, for a single run folder."""
    run = RunFolder(folder)
    paths = [run.checkpoints / "best.ckpt"] if which == "best" else _states(run, end)
    paths = [path for path in paths if path.exists()]
    for path in paths:
        if is_whole(path, sealed=True):
            return path
        print(f"{path} is damaged, taking the one before", file=sys.stderr)
    if paths or which == "best":
        raise UserError(
            f"{run} has no whole checkpoint for `{which}`: give --ckpt_path FILE (export: --checkpoint last)"
        )
    print(f"{run} has no checkpoint yet: starting it again from step 0", file=sys.stderr)
    return run.path, run.mlflow_run_id


def checkpoint_of(name: str | Path, which: str = "best", end: bool = True) -> Path | None:
    """The checkpoint that a user's name refers to; None if it is the name of something else.

    Args:
        name: A checkpoint, the folder of a run, or RUN_ROOT/NAME, which means its newest run.
        which: `last` or `best` checkpoint of a run.
        end: Whether `last` may be the final state `last.ckpt`, see `newest_checkpoint`.

    Raises:
        UserError: if a run has no undamaged checkpoint, or a folder of shards is damaged.
    """
    path = Path(name)
    if RunFolder(path).is_run():
        checkpoint = newest_of_run(path, which, end)
    elif RunFolder.all_in(path):
        checkpoint = newest_checkpoint(path, which, end)
    elif path.is_dir() and (path / WHOLE).is_file() and not _is_whole_folder(path):
        raise _damaged(path)
    else:
        return path if path.is_file() or _is_whole_folder(path) else None
    if not isinstance(checkpoint, Path):
        raise UserError(f"{name} has no checkpoint yet: expected a run that has written one")
    return checkpoint


def _states(run: RunFolder, end: bool = True) -> list[Path]:
    """Checkpoints to resume from, newest first."""
    states = sorted(run.checkpoints.glob("step-*.ckpt"), reverse=True)
    last = run.checkpoints / LAST
    # The next stage starts from a state written every n steps, unless there is none.
    if not last.exists() or (states and not end):
        return states
    # If a run is killed between a later save and the removal of `last.ckpt`, that file is outdated. A damaged
    # one stays first, so that the warning names it.
    if states and 0 <= step_of(last) < step_of(states[0]):
        return states
    return [last, *states]


def newest_step(run: RunFolder) -> int:
    """Number of optimizer steps at the newest undamaged state of a run; -1 if there is none."""
    return next((step_of(path) for path in _states(run) if is_whole(path, sealed=True)), -1)


def step_of(path: Path) -> int:
    """Number of optimizer steps at a checkpoint, from its name or content; -1 if neither states it."""
    if path.name.startswith("step-") and path.stem.removeprefix("step-").isdigit():
        return int(path.stem.removeprefix("step-"))
    try:
        if path.is_dir():
            return int((path / STEP).read_text())
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # a damaged archive may raise any exception
        return -1


def begin_fork(checkpoint: Path, run: RunFolder) -> Path:
    """Puts the state that a fork starts from into its folder; returns its path there.

    The fork can then be resumed before its first own checkpoint, and after the original run has removed that
    state.
    """
    target = run.checkpoints / f"step-{max(step_of(checkpoint), 0):07d}.ckpt"
    try:
        with atomic_write(target) as partial:
            if checkpoint.is_dir():
                shutil.copytree(checkpoint, partial)
            else:
                try:
                    os.link(checkpoint, partial)  # no copy: checkpoints are replaced, never modified in place
                except OSError:
                    shutil.copyfile(checkpoint, partial)
    except OSError as error:
        raise UserError(
            f"{checkpoint} could not be copied to {target} ({error.strerror or error}): make room or rights"
        ) from error
    return target
