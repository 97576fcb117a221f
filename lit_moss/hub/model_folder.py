"""What a folder of a language model states beyond the released layout: `lit_moss.json`.

A released folder has none. It names the tokenizers and the template whose rows the model was trained on, so
that a codec, a tokenizer or a template of another kind is refused instead of speaking nonsense.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError
from lit_moss.files import write_json
from lit_moss.llm.folders import read_json
from lit_moss.llm.replies import ReplyForm

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

    @classmethod
    def read(cls, folder: str | Path) -> "ModelRecord":
        """The record of a folder; an empty one where there is none, as in a released folder.

        Raises:
            UserError: if the file is damaged.
        """
        path = Path(folder) / RECORD
        if not path.is_file():
            return cls()
        content = read_json(path)
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in known})

    def write(self, folder: str | Path) -> None:
        """Writes it into a folder."""
        write_json(Path(folder) / RECORD, asdict(self))

    @property
    def form(self) -> ReplyForm:
        """Form of spoken replies."""
        options = self.reply_form
        default = ReplyForm()
        return ReplyForm(
            options.get("reply_form", default.name),
            options.get("interleave_text", default.text),
            options.get("interleave_codes", default.codes),
        )

    def check(self, folder: str | Path, **now: str) -> None:
        """Compares fingerprints; those that are unknown on one side are not compared.

        Args:
            folder: The model's, for the message.
            **now: Name of a field that holds a fingerprint -> the fingerprint at hand.

        Raises:
            UserError: for the first that differs; it names both.
        """
        for name, given in now.items():
            trained_on = str(asdict(self)[name])
            if trained_on and given and given != trained_on:
                part = name.replace("_", " ")
                of = f" ({self.speech_tokenizer_name})" if name == "speech_tokenizer" else ""
                raise UserError(
                    f"{folder} was trained with the {part} {trained_on}{of}, this one is {given}: give the "
                    f"{part} of the training"
                )


def record_of(name: str | Path) -> ModelRecord:
    """The record of a model: of a folder, or as its run's checkpoint and configuration state it.

    Args:
        name: See `lit_moss.hub.open_lm`.

    Raises:
        UserError: if it is damaged.
    """
    from lit_moss.runs.checkpoints import checkpoint_of, load_checkpoint, step_of
    from lit_moss.runs.folder import RunFolder

    path = checkpoint_of(name, "last")
    if path is None:
        return ModelRecord.read(name)
    made_by = load_checkpoint(path, mmap=True).get("made_by") or {}
    run = RunFolder.of_checkpoint(path)
    config = run.config() if run is not None and run.config_file.is_file() else {}
    model = config.get("model", {}).get("init_args", {})
    data = config.get("data", {}).get("init_args", {})
    form_keys = ("reply_form", "interleave_text", "interleave_codes")
    return ModelRecord(
        text_tokenizer=made_by.get("text_tokenizer") or "",
        speech_tokenizer=made_by.get("speech_tokenizer") or "",
        speech_tokenizer_name=data.get("speech_tokenizer") or "",
        reply_form={key: data[key] for key in form_keys if key in data},
        backbone=model.get("backbone") or "",
        steps=max(0, step_of(path)),
        run_id=(run.mlflow_run_id if run is not None else None) or "",
    )
