"""What a folder of a language model states beyond the released layout: `lit_moss.json`.

A released folder has none. It names the tokenizers and the template whose rows the model was trained on, so
that a codec, a tokenizer or a template of another kind is refused instead of speaking nonsense.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_moss.errors import UserError
from lit_moss.files import write_json
from lit_moss.llm.folders import read_json
from lit_moss.llm.replies import ReplyForm
from lit_moss.llm.rows import RowFormat

if TYPE_CHECKING:
    from lit_moss.codec import Codec, SpeechTokenizer

RECORD = "lit_moss.json"
CODEC = "codec"  # folder of the codec inside a model's folder, where it has one


@dataclass(frozen=True)
class ModelRecord:
    """Content of `lit_moss.json`.

    Args:
        text_tokenizer: Fingerprint, see `lit_moss.llm.backbone.text_tokenizer_fingerprint`; "" if unknown,
            as for all of them.
        speech_tokenizer: Fingerprint, see `lit_moss.hub.speech_tokenizer_fingerprint`.
        speech_tokenizer_name: Name that the run opened it by, for messages.
        template: Fingerprint of the chat template.
        reply_form: Options of the form of spoken replies that it was trained for, see `ReplyForm.options`.
        backbone: Name of the backbone.
        stages: Names of the runs, first stage first.
        steps: Optimizer steps of the last one.
        run_id: MLflow run of the last one.
        averaged: Number of checkpoints that the weights are the mean of.
        license: SPDX name of the weights' licence.
        source: Name that the folder was imported by.
    """

    text_tokenizer: str = ""
    speech_tokenizer: str = ""
    speech_tokenizer_name: str = ""
    template: str = ""
    reply_form: dict[str, Any] = field(default_factory=dict)
    backbone: str = ""
    stages: list[str] = field(default_factory=list)
    steps: int = 0
    run_id: str = ""
    averaged: int = 1
    license: str = ""
    source: str = ""

    @classmethod
    def read(cls, folder: str | Path) -> "ModelRecord":
        """The record of a folder; an empty one where there is none, as in a released folder.

        Raises:
            UserError: if the file is damaged, or a field is of another kind than here.
        """
        path = Path(folder) / RECORD
        if not path.is_file():
            return cls()
        content, default = read_json(path), asdict(cls())
        known = {key: value for key, value in content.items() if key in default}
        for key, value in known.items():
            if not _is_of_kind(value, default[key]):
                kind = type(default[key]).__name__
                raise UserError(f"{path} has {key} {value!r:.80}, expected a {kind}: get it again")
        return cls(**known)

    def write(self, folder: str | Path) -> None:
        """Writes it into a folder."""
        write_json(Path(folder) / RECORD, asdict(self))

    @property
    def form(self) -> ReplyForm:
        """Form of spoken replies."""
        return ReplyForm.of_options(self.reply_form)

    def check(self, folder: str | Path, **now: str) -> None:
        """Compares fingerprints; those that are unknown on one side are not compared.

        Args:
            folder: The model's, for the message.
            **now: Name of a field that holds a fingerprint -> the fingerprint at hand.

        Raises:
            UserError: for the first that differs; it names both.
        """
        for name, given in now.items():
            if self.differs(name, given):
                part = name.replace("_", " ")
                raise UserError(
                    f"{folder} was trained with the {part} {self.named(name)}, this one is {given}: "
                    f"give the {part} of the training"
                )

    def differs(self, name: str, given: str) -> bool:
        """Whether a fingerprint is another one than that of the training; False where one is unknown."""
        trained_on = str(asdict(self)[name])
        return bool(trained_on and given and given != trained_on)

    def named(self, name: str) -> str:
        """Fingerprint of the training for messages, with the speech tokenizer's name where it is known."""
        is_named = name == "speech_tokenizer" and self.speech_tokenizer_name
        return f"{asdict(self)[name]}" + (f" ({self.speech_tokenizer_name})" if is_named else "")


def _is_of_kind(value: Any, default: Any) -> bool:
    """Whether a field of a file is what the program reads there: lists hold texts, a form's counts are whole
    numbers."""
    if isinstance(value, list):
        inside = all(isinstance(entry, str) for entry in value)
    elif isinstance(value, dict):
        counts = ("interleave_text", "interleave_codes")
        inside = all(isinstance(value.get(count, 0), int) for count in counts)
    else:
        inside = True
    return isinstance(value, type(default)) and inside


def record_of(name: str | Path) -> ModelRecord:
    """The record of a model: of a folder, or as its run's checkpoint and configuration state it.

    Args:
        name: See `lit_moss.hub.open_lm`.

    Raises:
        UserError: if it is damaged.
    """
    from lit_moss.runs.checkpoints import checkpoint_of, open_checkpoint

    path = checkpoint_of(name, "last")
    return (
        ModelRecord.read(name) if path is None else record_of_checkpoint(path, open_checkpoint(path).settings)
    )


def record_of_checkpoint(path: Path, settings: Mapping[str, Any]) -> ModelRecord:
    """The record of a checkpoint's model.

    Args:
        path: The checkpoint.
        settings: What it holds beside tensors.
    """
    from lit_moss.runs.checkpoints import step_of
    from lit_moss.runs.folder import RunFolder

    made_by = settings.get("made_by") or {}
    run = RunFolder.of_checkpoint(path)
    config = run.config() if run is not None and run.config_file.is_file() else {}
    model = config.get("model", {}).get("init_args", {})
    data = config.get("data", {}).get("init_args", {})
    return ModelRecord(
        text_tokenizer=made_by.get("text_tokenizer") or "",
        speech_tokenizer=made_by.get("speech_tokenizer") or "",
        speech_tokenizer_name=data.get("speech_tokenizer") or "",
        reply_form=settings.get("reply_form") or _reply_form(data),
        backbone=model.get("backbone") or "",
        steps=max(0, step_of(path)),
        run_id=(run.mlflow_run_id if run is not None else None) or "",
    )


def _reply_form(data: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the form of spoken replies, of a data module or of the parts of a mixture."""
    parts = [data, *((part.get("init_args") or {}) for part in data.get("parts") or [])]
    keys = ("reply_form", "interleave_text", "interleave_codes")
    return next(({key: p[key] for key in keys if key in p} for p in parts if "reply_form" in p), {})


# --- comparisons with what is at hand -----------------------------------------------------------------------


def check_codec(
    folder: str | Path,
    record: ModelRecord,
    codec: "Codec",
    row_format: RowFormat | None = None,
    name: str = "the given one",
    any_log_mel: bool = False,
) -> None:
    """Refuses a codec that a model was not trained with; arguments and errors as of `check_speech_tokenizer`.

    A codec without a tokenizer only decodes; of it the number of codes is compared.

    Args:
        codec: The whole codec.
    """
    if codec.tokenizer is not None:
        check_speech_tokenizer(folder, record, codec.tokenizer, row_format, name, any_log_mel)
    if row_format is not None and codec.codes < row_format.eosp_token_id:
        raise _other_size(folder, row_format, name, codec.codes)


def check_speech_tokenizer(
    folder: str | Path,
    record: ModelRecord,
    tokenizer: "SpeechTokenizer",
    row_format: RowFormat | None = None,
    name: str = "the given one",
    any_log_mel: bool = False,
) -> None:
    """Refuses a speech tokenizer that a model was not trained with. Reads all its weights, 1 s a gigabyte.

    Args:
        folder: The model's folder or name, for messages.
        record: The model's.
        tokenizer: The one to use with it.
        row_format: The model's, whose number of codes has to be the tokenizer's; None does not compare them,
            which leaves a model without a record unchecked.
        name: Of the tokenizer, for messages.
        any_log_mel: Accept other features than the training's: where the user has asked for them.

    Raises:
        UserError: if it is another one; it names both.
    """
    from lit_moss.codec.encoder import fingerprint

    encoder = tokenizer.encoder
    codes = encoder.config.quantize_vocab_size
    if row_format is not None and codes != row_format.eosp_token_id:
        raise _other_size(folder, row_format, name, codes)
    given = fingerprint(encoder)
    if not record.differs("speech_tokenizer", given):
        return
    features = encoder.config.log_mel
    others = {"causal": "whisper", "whisper": "causal"}[features]
    if fingerprint(encoder, others) != record.speech_tokenizer:
        raise UserError(
            f"{folder} was trained with the speech tokenizer {record.named('speech_tokenizer')}, {name} "
            f"has {given}: give the codec of the training"
        )
    if not any_log_mel:
        raise UserError(
            f"{folder} was trained on codes of log_mel {others}, {name} is the same tokenizer with log_mel "
            f"{features}, which gives other codes: open it with log_mel {others} (--log-mel {others})"
        )


def check_text_tokenizer(folder: str | Path, record: ModelRecord, tokenizer: Any) -> None:
    """Refuses a text tokenizer that a model was not trained with.

    Args:
        folder: The model's folder or name, for messages.
        record: The model's.
        tokenizer: Of `load_text_tokenizer`.

    Raises:
        UserError: if it is another one; it names both.
    """
    from lit_moss.llm.backbone import text_tokenizer_fingerprint

    record.check(folder, text_tokenizer=text_tokenizer_fingerprint(tokenizer))


def _other_size(folder: str | Path, row_format: RowFormat, name: str, codes: int) -> UserError:
    return UserError(
        f"{folder} has {row_format.eosp_token_id} codes (eosp_token_id of its config.json), {name} has "
        f"{codes}: give the codec of the training"
    )
