"""Checkpoint files: written whole or not at all, read as data, found by name."""

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from typing_extensions import override

from lit_moss.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves beside the target, syncs, then renames: a kill at any moment leaves the old file or the new one.

    Lightning's own save moves a file from the system's temporary folder, which on another file system is a copy, and
    has swallowed a PermissionError. Loads with `weights_only=True`: a checkpoint cannot run code.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"the checkpoint {target} could not be written ({error.strerror}); earlier ones are whole. "
                            "Make room or rights, then resume with --ckpt_path last") from error  # fmt: skip

    @override
    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


def newest_checkpoint(folder: Path, which: str) -> Path | tuple[Path, str | None]:
    """Newest (`last`) or `best` whole checkpoint of the newest run below `folder`.

    A damaged file is passed over with a line that says so. A run that was killed before its first checkpoint is
    returned as (run folder, MLflow run id): it starts again from step 0 and goes on in the same MLflow run.

    Raises:
        UserError: if there is no run, or none of its checkpoints is whole.
    """
    runs = sorted((p for p in folder.glob("*") if (p / "run.json").is_file()), key=lambda p: p.name)
    if not runs:
        raise UserError(f"no run in {folder} to take `{which}` from: expected one made by `fit` of the same name")
    found = sorted((runs[-1] / "checkpoints").glob("best.ckpt" if which == "best" else "step-*.ckpt"), reverse=True)
    for path in found:
        if _is_whole(path):
            return path
        print(f"{path} is damaged, taking the one before", file=sys.stderr)
    if found or which == "best":
        raise UserError(f"{runs[-1]} has no whole checkpoint for `{which}`: give --ckpt_path FILE")
    print(f"{runs[-1]} has no checkpoint yet: starting it again from step 0", file=sys.stderr)
    return runs[-1], json.loads((runs[-1] / "run.json").read_text())["mlflow_run_id"]


def _is_whole(path: Path) -> bool:
    """Whether every part of the file has the checksum it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False
