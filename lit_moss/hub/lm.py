"""Opens language models by name: a run, a checkpoint, a folder in the released layout, a hub id."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.llm import SplitLM


def open_lm(name: str | Path, which: str = "last") -> "SplitLM":
    """Opens a language model on the CPU, in eval mode; the caller's random state does not change.

    The backbone of a checkpoint is opened as well, since checkpoints may leave out frozen weights.

    Args:
        name: A run's folder or RUN_ROOT/NAME (its newest run), a checkpoint of `SplitLLM`, a folder in the
            released layout, or a hub id.
        which: Checkpoint of a run: `last` (the newest) or `best`.

    Raises:
        UserError: if the model does not exist, or the backbone of a checkpoint has changed.
    """
    import torch

    from lit_moss.llm import SplitLM
    from lit_moss.llm.stages import model_of_checkpoint
    from lit_moss.runs.checkpoints import checkpoint_of, load_checkpoint

    path = checkpoint_of(name, which)
    if path is None:
        return SplitLM.from_pretrained(name)
    checkpoint = load_checkpoint(path, mmap=True)
    if "split_config" not in checkpoint:
        raise UserError(f"{path} is no checkpoint of a language model: expected one of a SplitLLM run")
    with torch.random.fork_rng():
        return model_of_checkpoint(checkpoint, backbone_of(path, checkpoint), str(path))


def backbone_of(path: Path, checkpoint: dict[str, Any]) -> str:
    """Name of the backbone, from the checkpoint's record of frozen weights or the run's configuration.

    Args:
        path: The checkpoint.
        checkpoint: Content of the checkpoint, or only its settings.

    Raises:
        UserError: if neither states it.
    """
    if frozen := checkpoint.get("frozen"):
        return frozen["backbone"]
    from lit_moss.runs.folder import RunFolder

    run = RunFolder.of_checkpoint(path)
    if run is None or not run.config_file.is_file():
        raise UserError(
            f"{path} does not state its backbone and is not in its run's folder: give the run's folder, or "
            "put the file back into its checkpoints/"
        )
    return run.config()["model"]["init_args"]["backbone"]
