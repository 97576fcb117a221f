"""Language models by name: a run, a checkpoint, a folder in the released layout, a hub id."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_moss.llm import SplitLM


def open_lm(name: str | Path, which: str = "last") -> "SplitLM":
    """Language model in eval mode, on the CPU.

    Args:
        name: A run's folder or RUN_ROOT/NAME (the newest run), a checkpoint of `SplitLLM`, a folder in the released
            layout, or a hub id.
        which: Checkpoint of a run: `last`, the newest one, or `best`.

    Raises:
        UserError: if there is no such model, or the backbone of a checkpoint has changed.
    """
    from lit_moss.llm import SplitLM
    from lit_moss.runs.checkpoints import checkpoint_of

    checkpoint = checkpoint_of(name, which)
    if checkpoint is None:
        return SplitLM.from_pretrained(name)
    return lm_of_checkpoint(checkpoint)


def lm_of_checkpoint(path: Path) -> "SplitLM":
    """Language model of a Lightning checkpoint of `SplitLLM`, read as data only.

    The backbone that the training started from is opened too: a checkpoint may leave out frozen weights.

    Raises:
        UserError: if it is another model's checkpoint, or the backbone has changed.
    """
    import torch

    from lit_moss.errors import UserError
    from lit_moss.llm import SplitLM
    from lit_moss.llm.config import SplitConfig
    from lit_moss.llm.stages import take_over
    from lit_moss.runs.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path, mmap=True)
    if "split_config" not in checkpoint:
        raise UserError(f"{path} is no checkpoint of a language model: expected one made by conf/stage1.yaml")
    config = SplitConfig.from_dict(checkpoint["split_config"], str(path))
    with torch.random.fork_rng():
        lm = SplitLM.from_backbone(
            _backbone_of(path, checkpoint),
            config.num_modality_layers,
            config.format.audio_vocab_size,
            config.joint,
            row_format=config.format,
        )
    take_over(lm, checkpoint, str(path))
    return lm.eval()


def _backbone_of(path: Path, checkpoint: dict[str, Any]) -> str:
    return ""
