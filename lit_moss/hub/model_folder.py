"""The content of `lit_moss.json`, which a language model's folder has in addition to the released layout.

Released folders do not have it. It identifies the tokenizers and the chat template with which the model was
trained, so that another codec, tokenizer or template is rejected instead of producing nonsense.
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
CODEC = "codec"  # folder of the codec within a model folder, if there is one


@dataclass(frozen=True)
class ModelRecord:
    """Content of `lit_moss.json`.

    Args:
        text_tokenizer: Fingerprint, see `lit_moss.llm.backbone.text_tokenizer_fingerprint`; "" if unknown
            (the same holds for the other fingerprints).
        speech_tokenizer: Fingerprint, see `lit_moss.hub.speech_tokenizer_fingerprint`.
        speech_tokenizer_name: Name by which the run opened it, for messages.
        template: Fingerprint of the chat template.
        reply_form: Options of the form of spoken replies that the model was trained for, see
            `ReplyForm.options`.
        backbone: Name of the backbone.
        stages: Names of the runs, first stage first.
        steps: Number of optimizer steps of the last run.
        run_id: MLflow run id of the last run.
        averaged: Number of checkpoints that were averaged.
        license: SPDX name of the weights' licence.
        source: Name from which the folder was imported.
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
        """Reads the record of a folder; empty if there is none, as in a released folder.

        Raises:
            UserError: if the file is damaged, or a field has the wrong type.
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
        """Writes the record into a folder."""
        write_json(Path(folder) / RECORD, asdict(self))

    @property
    def form(self) -> ReplyForm:
        """Form of spoken replies."""
        return ReplyForm.of_options(self.reply_form)

    def check(self, folder: str | Path, **now: str) -> None:
        """Compares fingerprints; a fingerprint that is unknown on either side is not compared.

        Args:
            folder: Folder of the model, for messages.
            **now: Field name -> the fingerprint to compare with.

        Raises:
            UserError: for the first difference; the message names both fingerprints.
        """
        for name, given in now.items():
            if self.differs(name, given):
                part = name.replace("_", " ")
                raise UserError(
                    f"{folder} was trained with the {part} {self.named(name)}, this one is {given}: "
                    f"give the {part} of the training"
                )

    def differs(self, name: str, given: str) -> bool:
        """Whether a fingerprint differs from that of the training; False if either is unknown."""
        trained_on = str(asdict(self)[name])
        return bool(trained_on and given and given != trained_on)

    def named(self, name: str) -> str:
        """The training's fingerprint for messages, with the speech tokenizer's name if known."""
        is_named = name == "speech_tokenizer" and self.speech_tokenizer_name
        return f"{asdict(self)[name]}" + (f" ({self.speech_tokenizer_name})" if is_named else "")


def _is_of_kind(value: Any, default: Any) -> bool:
    """Whether a field has the expected type: lists of strings, reply-form counts as whole numbers."""
    if isinstance(value, list):
        inside = all(isinstance(entry, str) for entry in value)
    elif isinstance(value, dict):
        counts = ("interleave_text", "interleave_codes")
        inside = all(isinstance(value.get(count, 0), int) for count in counts)
    else:
        inside = True
    return isinstance(value, type(default)) and inside


def record_of(name: str | Path) -> ModelRecord:
    """The record of a model: that of its folder, or derived from its run's checkpoint and configuration.

    Args:
        name: Name of the model, see `lit_moss.hub.open_lm`.

    Raises:
        UserError: if the record is damaged.
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
        settings: Content of the checkpoint besides tensors.
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
    """Options of the form of spoken replies, from a data module or the parts of a mixture."""
    parts = [data, *((part.get("init_args") or {}) for part in data.get("parts") or [])]
    keys = ("reply_form", "interleave_text", "interleave_codes")
    return next(({key: p[key] for key in keys if key in p} for p in parts if "reply_form" in p), {})


# --- compatibility checks -----------------------------------------------------------------------------------


def check_codec(
    folder: str | Path,
    record: ModelRecord,
    codec: "Codec",
    row_format: RowFormat | None = None,
    name: str = "the given one",
    any_log_mel: bool = False,
) -> None:
    """Rejects a codec that a model was not trained with; arguments as in `check_speech_tokenizer`.

    A codec without a tokenizer only decodes; only its number of codes is compared.

    Args:
        codec: The complete codec.
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
    """Rejects a speech tokenizer with which a model was not trained. Reads all its weights, 1 s per gigabyte.

    Args:
        folder: Folder or name of the model, for messages.
        record: Record of the model.
        tokenizer: The speech tokenizer to use.
        row_format: Row format of the model, whose number of codes must equal the tokenizer's. None: not
            compared, so a model without a record is not checked.
        name: Name of the tokenizer, for messages.
        any_log_mel: Accept features other than those of the training, if the user requested them.

    Raises:
        UserError: if it is another tokenizer; the message names both.
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
    """Rejects a text tokenizer with which a model was not trained.

    Args:
        folder: Folder or name of the model, for messages.
        record: Record of the model.
        tokenizer: Text tokenizer, as returned by `load_text_tokenizer`.

    Raises:
        UserError: if it is another tokenizer; the message names both.
    """
    from lit_moss.llm.backbone import text_tokenizer_fingerprint

    record.check(folder, text_tokenizer=text_tokenizer_fingerprint(tokenizer))


def _other_size(folder: str | Path, row_format: RowFormat, name: str, codes: int) -> UserError:
    return UserError(
        f"{folder} has {row_format.eosp_token_id} codes (eosp_token_id of its config.json), {name} has "
        f"{codes}: give the codec of the training"
    )
