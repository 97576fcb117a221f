"""Resolves `--ckpt_path`, and determines whether a `fit` starts a run, resumes one, or forks it."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lit_moss.errors import UserError
from lit_moss.runs.checkpoints import (
    is_whole,
    load_checkpoint,
    newest_checkpoint,
    newest_of_run,
    newest_step,
    step_of,
)
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.layouts import layout_of
from lit_moss.runs.shards import check_shards
from lit_moss.runs.tracking import Tracker
from lit_moss.trainer_access import is_deepspeed, is_kind_of

# A checkpoint; or the folder and MLflow id of a run without checkpoints, which starts again from step 0.
Start = Path | tuple[Path, str | None]


def find_start(asked: str | None, folder: Path, verb: str, run_name: str | None = None) -> Start | None:
    """The state that a verb starts from; None for a new run.

    Args:
        asked: Value of `--ckpt_path`: a checkpoint, a run's folder, `last`, `best` or `auto`.
        folder: Folder of the runs, RUN_ROOT/NAME, in which `last`, `best` and `auto` are looked up.
        verb: `fit`, `validate`, `test` or `predict`.
        run_name: Value of `--run_name`, the run that `auto` continues. None: the newest run in `folder`.

    Raises:
        UserError: if the checkpoint does not exist, is missing for a verb that needs one, or is a folder of
            shards that contains anything but data.
    """
    if asked == "auto":
        asked = _run_to_continue(folder, verb, run_name)
    start = _named_start(asked, folder, verb)
    if isinstance(start, Path) and start.is_dir():
        check_shards(start)
    return start


def _run_to_continue(folder: Path, verb: str, run_name: str | None) -> str | None:
    """Resolves `auto`: the folder of a run, or None if there is no such run yet."""
    if verb != "fit":
        raise UserError(f"--ckpt_path auto is for fit: give {verb} a file, a run's folder, `last` or `best`")
    if run_name:
        return str(folder / run_name) if RunFolder(folder / run_name).is_run() else None
    runs = RunFolder.all_in(folder)
    return str(runs[-1].path) if runs else None


def _named_start(asked: str | None, folder: Path, verb: str) -> Start | None:
    if asked is None:
        if verb != "fit":
            raise UserError(f"{verb} needs --ckpt_path: a file, `last` or `best`")
        return None
    path = Path(asked)
    if asked in ("last", "best"):
        start = newest_checkpoint(folder, asked)
    elif path.is_dir() and is_whole(path):
        return path
    elif RunFolder(path).is_run():
        start = newest_of_run(path, "last")
    elif not path.is_file():
        raise UserError(
            f"no checkpoint {asked}: expected a .ckpt file, a run's folder, `last`, `best` or `auto`"
        )
    elif "pytorch-lightning_version" not in load_checkpoint(path, mmap=True):
        raise UserError(f"{asked} is no checkpoint of a run: expected one written by `fit`")
    else:
        return path
    if verb != "fit" and not isinstance(start, Path):
        raise UserError(f"{start[0]} has no checkpoint yet: {verb} needs one, train further first")
    return start


def check_layout(checkpoint: Path, strategy: Any) -> None:
    """Refuses to resume from a checkpoint that the run's strategy cannot read.

    Each strategy stores the optimizer's state in its own way: folders of shards are read only by the strategy
    that wrote them, and FSDP2 and DeepSpeed do not read a file of one device or DDP.

    Args:
        checkpoint: State that training resumes from.
        strategy: Lightning's strategy of the run.

    Raises:
        UserError: if another kind of strategy wrote it.
    """
    layout = layout_of(checkpoint)
    if is_deepspeed(strategy):
        stage = getattr(strategy, "config", {}).get("zero_optimization", {}).get("stage")
        fits = layout.kind == "deepspeed" and layout.zero_stage in (stage, None)
        name = "DeepSpeed" + (f" ZeRO-{stage}" if stage else "")
    elif is_kind_of(strategy, "ModelParallel"):
        fits, name = layout.kind in ("fsdp2", "gathered"), "FSDP2"
    elif is_kind_of(strategy, "FSDP"):  # Lightning's older strategy, which has formats of its own
        return
    else:
        fits, name = layout.kind in ("file", "gathered"), "one device or DDP"
    if not fits:
        part = layout.machine_part
        again = f"with {part}" if part else "without a machine part, or with conf/trainer/ddp.yaml"
        raise UserError(
            f"{checkpoint} was written by {layout.writer}, this run's strategy is {name}: resume {again}, or "
            f"start a new run from it with --model.init_args.init_from {checkpoint}"
        )


def open_run(start: Start | None, root: Path, name: str, asked: str | None) -> tuple[Tracker, bool]:
    """The tracker of the run that a `fit` continues or starts, and whether the run is a fork.

    Args:
        start: State that training starts from.
        root: Root folder of all runs.
        name: Folder within `root`, with the runs of one name.
        asked: Value of `--run_name`. None: the time.

    Raises:
        UserError: if `asked` is not a plain name, or is the name of another run.
    """
    resumed = _resumed_run(start)
    if asked and Path(asked).name != asked:
        raise UserError(f"--run_name is {asked!r}, expected a plain name: it is one folder below --name")
    if resumed is not None and asked in (None, resumed.path.name):
        path = resumed.path
        return Tracker(path.parent.name, path.name, str(path.parent.parent), resumed.mlflow_run_id), False
    folder = _new_folder(root / name, asked)
    is_fork = isinstance(start, Path)
    tags = {"forked_from": _origin(start)} if isinstance(start, Path) else None
    return Tracker(name, folder.name, str(root), tags=tags), is_fork


def _resumed_run(start: Start | None) -> RunFolder | None:
    """The run to continue; None for a new run and for a fork.

    A fork starts from a state older than the newest one of its run.
    """
    if start is None:
        return None
    if isinstance(start, tuple):
        return RunFolder(start[0])
    run = RunFolder.of_checkpoint(start)
    if run is None:
        return None
    newest = newest_step(run)
    if newest < 0:  # a run that keeps only its best state
        result = run.result()
        newest = result["step"] if result else 0
    if step_of(start) < newest:
        rank_zero_info(
            f"{start} is of step {step_of(start)}, its run has reached {newest}: this is "
            f"a fork, a run of its own; to continue that run give --ckpt_path {run}"
        )
        return None
    return run


def _new_folder(parent: Path, asked: str | None) -> Path:
    name = asked or time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = parent / name
    if asked and RunFolder(folder).is_run():
        raise UserError(
            f"there is a run {folder} already: give another --run_name, or continue it with "
            f"--ckpt_path {folder}"
        )
    for number in range(2, 1000):  # two runs started in the same second
        try:
            folder.mkdir(parents=True, exist_ok=bool(asked))
            break
        except FileExistsError:
            folder = folder.with_name(f"{name}-{number}")
    return folder


def _origin(checkpoint: Path) -> str:
    """The origin of a fork, for its record."""
    run = RunFolder.of_checkpoint(checkpoint)
    if run is not None:
        run_id = run.mlflow_run_id
    else:
        run_id = None if checkpoint.is_dir() else load_checkpoint(checkpoint, mmap=True).get("mlflow_run_id")
    return f"run {run_id}, step {step_of(checkpoint)}, {checkpoint.absolute()}"
