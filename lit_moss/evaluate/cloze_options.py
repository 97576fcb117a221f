"""Options of the cloze benchmark."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from lit_moss.errors import UserError

Method = Literal["whole-mean", "ending-sum", "ending-mean"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass
class Config:
    """Options of the cloze benchmark.

    Args:
        model: Model: a run, a checkpoint, a folder in the released layout, a hub id, or for text pairs a
            backbone (embedded:smollm2-135m).
        items: Files and folders of pairs, embedded:stories-en, and corpora (manifests, texts, embedded ones)
            from which items are made; each is reported separately.
        format: Format of the items. auto: detected from the names in a folder and the first line of a file.
        voices: Voices for pairs without audio, named as in `prepare synthesize`; the first of each language
            is used. []: such pairs stay text.
        modalities: Modalities of context and ending. null: all that the items have.
        score: Score used in figures and comparisons; the report has all three.
        count_eosp: Count the end of speech as a row (as in SlamKit).
        deduplicate: Remove repetitions of a code (as in SlamKit, for units of 25 or 50 Hz).
        mask_other: Normalise probabilities over rows of the same modality only. It affects only models
            without a split, since the heads of others predict a single modality.
        join: How to join a spoken context and a spoken ending in two files: `waves`, before encoding (the
            common reading), or `codes`, after encoding.
        codec: Codec or speech tokenizer, see `serve`. null: the model's own.
        log_mel: Features of the speech tokenizer: causal or whisper. null: as stated by the tokenizer.
        part: Part of embedded corpora: train or validation.
        speech_tokenizer: Speech tokenizer for items made from a corpus. null: that of the training; `none`:
            text items only.
        seed: Seed for items made from a corpus.
        against: Folder of an earlier cloze evaluation of another model on the same items, for comparison.
        dtype: Data type of the weights; logits, log-probabilities and sums are always float32 or wider.
        limit: Number of pairs per set, from the first. null: all (for a corpus, 64 of each modality).
        batch_size: Number of pairs scored together.
        device: auto, cpu or cuda.
        name: MLflow experiment, and folder below `run_root`.
        run_root: Folder of all runs' files.
        again: Start over if results exist.
    """

    model: str
    items: list[str]
    format: Literal[
        "auto", "numbered", "cross_modal", "gold", "salmon", "manifest", "xstorycloze", "stories", "documents"
    ] = "auto"
    voices: list[str] = field(default_factory=list)
    modalities: list[Literal["speech-speech", "text-text", "speech-text", "text-speech"]] | None = None
    score: Literal["whole-mean", "ending-sum", "ending-mean"] = "whole-mean"
    count_eosp: bool = True
    deduplicate: bool = False
    mask_other: bool = False
    join: Literal["waves", "codes"] = "waves"
    codec: str | None = None
    log_mel: Literal["causal", "whisper"] | None = None
    part: Literal["train", "validation"] = "validation"
    speech_tokenizer: str | None = None
    seed: int = 1
    against: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    limit: int | None = None
    batch_size: int = 16
    device: str = "auto"
    name: str = "cloze"
    run_root: str = "runs"
    again: bool = False

    def __post_init__(self) -> None:
        if not self.items:
            raise UserError("items is [], expected files or folders of pairs, or corpora")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit is {self.limit}, expected 1 or more")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}, expected 1 or more")
