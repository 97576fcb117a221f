"""Initial weights of the split language model: from a backbone, an earlier stage, or a released folder.

backbone ─ SplitLM.from_backbone ─┬─ code embeddings: random, from the codebook, from aligned text
                                  └─ weights of an earlier stage's checkpoint
folder   ─ SplitLM.from_pretrained
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_moss import trainer_access
from lit_moss.errors import UserError
from lit_moss.hub.model_folder import ModelRecord
from lit_moss.llm import SplitLM, stages
from lit_moss.llm.backbone import load_text_tokenizer, resolve_backbone, text_tokenizer_fingerprint
from lit_moss.llm.init_codes import InitCodes, start_at_codebook, start_at_text
from lit_moss.llm.released import has_tokenizer
from lit_moss.llm.rows import RowFormat
from lit_moss.modules.trunk_ctc import stored_head
from lit_moss.runs.checkpoints import checkpoint_of, load_checkpoint

_LAYERS = 4  # of each tail, as in the released model


@dataclass(frozen=True)
class InitialWeights:
    """The options of `SplitLLM` that determine the initial weights; documented there.

    Args:
        backbone: The text language model.
        num_modality_layers: Number of layers of each tail. None: those of the folder in `init_from`,
            otherwise 4.
        joint: No split: codes join the text vocabulary.
        init_from: Weights to start from instead of the backbone's, or None.
        init_codes: Initial code embeddings: `random`, `codebook` or `text`.
        dtype: Data type of the weights.
    """

    backbone: str
    num_modality_layers: int | None
    joint: bool
    init_from: str | None
    init_codes: InitCodes
    dtype: torch.dtype

    def weights(
        self, trainer: Trainer, row_format: RowFormat, resumes: bool
    ) -> tuple[SplitLM, dict[str, Any] | None]:
        """The model with its initial weights, and the CTC head of an earlier stage (`stored_head`) or None.

        The weights are in `dtype`, or mapped from files in the data type of the files.

        Args:
            trainer: The run's trainer.
            row_format: Row format of the documents.
            resumes: Whether a checkpoint is loaded afterwards; code embeddings are then not computed.
        """
        fingerprints = trainer_access.fingerprints_of(trainer)
        source = self.init_from
        if source is not None and (Path(source) / "config.json").is_file():
            keys = ("text_tokenizer", "speech_tokenizer")
            known = {key: fingerprints.get(key, "none").replace("none", "") for key in keys}
            record = ModelRecord.read(source)
            record.check(source, **known)
            self._warn_of_other_replies(trainer, record)
            lm = SplitLM.from_pretrained(source)
            self._check_split(lm)
            return lm, None
        path = None if source is None else stage_checkpoint(source)
        if path is None and trainer.state.fn == "fit" and not resumes:
            self._check_text_tokenizer(trainer, fingerprints.get("text_tokenizer"))
        checkpoint = None if path is None else load_checkpoint(path, mmap=True)
        lm = SplitLM.from_backbone(
            self.backbone,
            _LAYERS if self.num_modality_layers is None else self.num_modality_layers,
            row_format.audio_vocab_size,
            self.joint,
            self.dtype,
            row_format,
            empty=checkpoint is not None and checkpoint.get("frozen") is None,
        )
        if checkpoint is not None:
            stages.check_tokenizers(checkpoint.get("made_by") or {}, fingerprints)
            tensors = stages.load_initial_weights(lm, checkpoint, str(path), assign=True)
            rank_zero_info(f"{path}: {tensors} tensors loaded")
            return lm, stored_head(checkpoint)
        if trainer.state.fn == "fit" and not resumes:
            self._init_codes(trainer, lm)
        return lm, None

    def _check_text_tokenizer(self, trainer: Trainer, made_by: str | None) -> None:
        """Checks that documents and backbone have the same text tokenizer, so that ids mean the same.

        Tokenizers that differ only in their rules have the same ids. This can be checked only if
        `data.backbone` names the tokenizer of the documents.
        """
        folder = Path(self.backbone)
        folder = folder if folder.is_dir() else resolve_backbone(self.backbone)
        if made_by in (None, "none") or not has_tokenizer(folder):
            return
        own, data = load_text_tokenizer(folder), trainer_access.datamodule_of(trainer)
        found = text_tokenizer_fingerprint(own)
        if found == made_by:
            return
        named = getattr(data, "backbone", None)
        if named is not None and named != self.backbone:
            theirs = load_text_tokenizer(named)
            if text_tokenizer_fingerprint(theirs) == made_by and theirs.get_vocab() == own.get_vocab():
                return
        raise UserError(
            f"the documents' text ids are of the text tokenizer {made_by}, {self.backbone} has {found}: make "
            "the documents with this backbone, or train the one that they were made with "
            "(model.init_args.backbone)"
        )

    def _check_split(self, lm: SplitLM) -> None:
        layers, own = self.num_modality_layers, lm.config.num_modality_layers
        if self.joint != lm.config.joint or (layers is not None and layers != own):
            raise UserError(
                f"model.num_modality_layers is {layers} and joint {self.joint}, {self.init_from} has {own} "
                f"and {lm.config.joint}: a model in a folder keeps its split, leave both out"
            )

    def _init_codes(self, trainer: Trainer, lm: SplitLM) -> None:
        if self.init_codes == "random":
            return
        codebook = trainer_access.codebook_of(trainer)
        if self.init_codes == "codebook":
            start_at_codebook(lm, codebook)
            rank_zero_info(f"embeddings of {len(codebook)} codes start at the codebook, the audio head at 0")
            return
        data = trainer_access.spoken_text_data(trainer, "model.init_codes text")
        codes, ids = data.aligned_codes()
        seen = start_at_text(lm, codes, ids, codebook)
        rank_zero_info(
            f"embeddings of {seen} of {len(codebook)} codes start at the mean of the text of {len(codes)} "
            "aligned codes, the others at the codebook, the audio head at 0"
        )

    def _warn_of_other_replies(self, trainer: Trainer, record: ModelRecord) -> None:
        forms = [form.name for form in trainer_access.reply_forms(trainer)]
        if record.reply_form and forms and record.form.name not in forms:
            rank_zero_info(
                f"{self.init_from} was trained for {record.form.name} spoken replies, these documents hold "
                f"{' and '.join(forms)} ones (data.init_args.reply_form): it learns another form"
            )


def stage_checkpoint(source: str) -> Path:
    """Path of the checkpoint of an earlier stage.

    Args:
        source: A checkpoint, the folder of a run, or the folder of all runs of a name.

    Raises:
        UserError: if there is no checkpoint.
    """
    path = checkpoint_of(source, "last", end=False) or Path(source)
    if not path.exists():
        raise UserError(f"model.init_from: no {source}, expected a checkpoint or a folder with config.json")
    return path
