"""Lightning checkpoint files, written atomically and read as data only."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from typing_extensions import override

from lit_moss.errors import UserError, first_line
from lit_moss.runs.checkpoints import load_checkpoint, seal_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: to a temporary file next to the target, synced and renamed.

    Lightning's own save moves a file from the system's temporary folder, which copies it if that is another
    file system, and has ignored a PermissionError. Loads with `weights_only=True`, so that a checkpoint
    cannot execute code.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w+b") as file:
                torch.save(checkpoint, file)
                seal_file(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
            raise UserError(
                f"the checkpoint {target} could not be written ({reason}); earlier ones are whole. "
                "Make room or rights, then resume with --ckpt_path last"
            ) from error

    @override
    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))
