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
        model: A run, a checkpoint, a folder in the released layout, a hub id, or for texts a backbone
            (embedded:smollm2-135m).
        items: Files and folders of pairs, embedded:stories-en, and corpora (manifests, texts, embedded ones)
            to make items from; each is reported by itself.
        format: Format of the items; `auto` looks at the names in a folder and the first line of a file.
        voices: Voices that speak texts of pairs that have no sound, as in `prepare synthesize`; of each
            language the first. [] leaves them text alone.
        modalities: Modalities of context and ending; null uses all that the items have.
        score: The score that pictures and comparisons use; the report has all three.
        count_eosp: Whether the end of speech counts as a row (SlamKit's habit).
        deduplicate: Whether repetitions of a code are removed (SlamKit's habit, for units of 25 or 50 Hz).
        mask_other: Whether probabilities are taken among rows of the same modality only. It changes models
            without a split alone: the heads of others predict one modality each.
        join: How a spoken context and a spoken ending in two files are joined: `waves` before encoding (the
            public reading), or `codes` after it.
        codec: Codec or speech tokenizer, see `serve`; null takes the model's own.
        log_mel: Features of the speech tokenizer, causal or whisper; null takes its own.
        part: Part of embedded corpora.
        speech_tokenizer: Speech tokenizer by name, for items made from a corpus; null takes the one of the
            training; `none` makes items of text alone.
        seed: Seed of items made from a corpus.
        against: Folder of an earlier cloze evaluation of another model on the same items, to compare with.
        dtype: Precision of the weights; logits, log-probabilities and sums are float32 or more either way.
        limit: Number of pairs of each set, from the first; null uses all (of a corpus 64 of each modality).
        batch_size: Number of pairs scored together.
        device: auto, cpu or cuda.
        name: MLflow experiment, and folder below `run_root`.
        run_root: Folder of all runs' files.
        again: Whether to start over where results exist.
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
