"""Opens the text path of a model, or a text backbone to compare with."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.llm import SplitLM
    from lit_moss.llm.replies import ReplyForm


def open_text_model(
    name: str, device: str = "auto", dtype: str = "float32"
) -> "tuple[SplitLM, Any, ReplyForm]":
    """A model or plain backbone, its text tokenizer, and the form of its replies.

    Args:
        name: A run, a checkpoint, a folder in the released layout, a hub id, or a backbone (a folder, a
            hub id, embedded:smollm2-135m).
        device: auto, cpu or cuda.
        dtype: float32 or bfloat16.

    Raises:
        UserError: if the model does not exist.
    """
    import torch

    from lit_moss.devices import moved
    from lit_moss.hub import open_lm
    from lit_moss.hub.model_folder import check_text_tokenizer, record_of
    from lit_moss.llm import SplitLM
    from lit_moss.llm.backbone import load_text_tokenizer
    from lit_moss.llm.replies import DIRECT
    from lit_moss.llm.rows import audio_vocab_for

    form = DIRECT
    if is_backbone(name):
        # Without layers of its own, the speech tail costs no more than a table of 128 codes.
        lm = SplitLM.from_backbone(name, 0, audio_vocab_for(1))
        tokenizer = load_text_tokenizer(name)
    else:
        lm, record = open_lm(name), record_of(name)
        if lm.tokenizer_folder is None:
            raise UserError(f"{name} has no text tokenizer: give a folder that `export` wrote")
        tokenizer, form = load_text_tokenizer(lm.tokenizer_folder), record.form
        check_text_tokenizer(name, record, tokenizer)
    return moved(lm.to(getattr(torch, dtype)), device).eval(), tokenizer, form


def is_backbone(name: str) -> bool:
    """Whether a name refers to a text backbone, not to a run, a checkpoint or a split model."""
    from lit_moss import assets
    from lit_moss.llm.stages import is_released, is_split

    if name.startswith(assets.SCHEME):
        return True
    path = Path(name)
    if not path.exists() and name.count("/") == 1:
        path = assets.resolve(name)  # a hub id
    return path.is_dir() and is_released(path) and not is_split(path)
