"""The parts of a served model: language model, text tokenizer and codec, opened together and checked."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_moss.data.chat_template import chat_template, template_fingerprint
from lit_moss.data.conversation import Renderer
from lit_moss.devices import has_fast_bf16, moved
from lit_moss.errors import UserError
from lit_moss.hub import open_codec, open_lm, open_tokenizer
from lit_moss.hub.codes_to_audio import voice_prompt
from lit_moss.hub.model_folder import (
    CODEC,
    ModelRecord,
    check_codec,
    check_speech_tokenizer,
    check_text_tokenizer,
    record_of,
)
from lit_moss.llm.backbone import load_text_tokenizer

if TYPE_CHECKING:
    from lit_moss.codec import Codec, SpeechTokenizer
    from lit_moss.codec.codec import Player
    from lit_moss.codec.flow import Prompt
    from lit_moss.llm import SplitLM

DEFAULT_VOICE = "default"
TEMPLATE = "chat_template.jinja"


@dataclass
class SpeechModel:
    """A language model with everything that converts audio and text to rows and back.

    Args:
        name: Name by which clients refer to the model.
        lm: The language model.
        text_tokenizer: Text tokenizer of the model.
        speech_tokenizer: Audio -> codes; None: text input only.
        codec: Codes -> audio; None: no decoder, text replies only.
        record: Record of the model's training.
        voices: Name -> voice prompt.
    """

    name: str
    lm: "SplitLM"
    text_tokenizer: Any
    speech_tokenizer: "SpeechTokenizer | None"
    codec: "Codec | None"
    record: ModelRecord = field(default_factory=ModelRecord)
    voices: "dict[str, Prompt]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.codec is not None:
            self.voices = {DEFAULT_VOICE: self.codec.no_prompt(), **self.voices}
        self._players: dict[str, tuple[Prompt, Player]] = {}

    @cached_property
    def renderer(self) -> Renderer:
        """Converts turns to rows. Likelihoods do not need it, and models that cannot chat do not have it.

        Raises:
            UserError: if the text tokenizer lacks the tokens for turns.
        """
        return Renderer(self.text_tokenizer, self.lm.format, self.record.form)

    def player(self, voice: str) -> "Player":
        """A stream for one utterance in a voice; the voice prompt is only computed for the first utterance.

        Call it from one thread only.
        """
        assert self.codec is not None
        prompt, known = self.voices[voice], self._players.get(voice)
        if known is None or known[0] is not prompt:
            known = self._players[voice] = prompt, self.codec.stream(prompt)
        return known[1].copy()

    @classmethod
    def open(
        cls,
        model: str,
        codec: str | None = None,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        log_mel: str | None = None,
        voices: dict[str, str] | None = None,
        vocoder: str | None = None,
    ) -> "SpeechModel":
        """Loads all parts of a model on one device.

        Args:
            model: A run, a checkpoint, a folder in the released layout, or a hub id.
            codec: Name of the codec, see `open_codec`. None: the folder `codec` of the model folder,
                otherwise only the speech tokenizer of the training.
            device: auto, cpu or cuda.
            dtype: Data type of the language model's weights. None: as stored, or float32 on a processor
                without bfloat16 units (twice the memory, a tenth of the time for a prompt).
            log_mel: Features of the speech tokenizer, see `open_tokenizer`.
            voices: Name -> sound file to use as a voice prompt.
            vocoder: Name of the vocoder, see `open_codec`.

        Raises:
            UserError: if a part is missing, or differs from that of the training.
        """
        lm = open_lm(model)
        record = record_of(model)
        if lm.tokenizer_folder is None:
            raise UserError(f"{model} has no text tokenizer: give a folder that `export` wrote")
        text_tokenizer = load_text_tokenizer(lm.tokenizer_folder)
        check_text_tokenizer(model, record, text_tokenizer)
        _check_template(model, record, text_tokenizer)
        speech_tokenizer, opened = _speech_parts(model, codec, record, log_mel, vocoder)
        if vocoder is not None and opened is None:
            raise UserError(f"--vocoder {vocoder} needs a decoder: give the codec by --codec")
        name, any_log_mel = codec or "its codec", log_mel is not None
        if opened is not None:
            check_codec(model, record, opened, lm.format, name, any_log_mel)
            opened = moved(opened, device)
        elif speech_tokenizer is not None:
            check_speech_tokenizer(model, record, speech_tokenizer, lm.format, name, any_log_mel)
            speech_tokenizer = moved(speech_tokenizer, device)
        lm = moved(lm if dtype is None else lm.to(dtype), device).eval()
        if dtype is None and next(lm.parameters()).device.type == "cpu" and not has_fast_bf16("cpu"):
            lm = lm.float()
        prompts = {}
        for voice, file in (voices or {}).items():
            if opened is None:
                raise UserError(f"--voice {voice}={file} needs a decoder: give the codec by --codec")
            prompts[voice] = voice_prompt(opened, file, f"--voice {voice}=FILE:")
        return cls(_name_of(model), lm, text_tokenizer, speech_tokenizer, opened, record, prompts)


def _name_of(model: str) -> str:
    """The name of the folder, also for `.` and `..`; for a symbolic link, the name of the link."""
    return Path(os.path.abspath(model) if Path(model).exists() else model).name or model


def _check_template(model: str, record: ModelRecord, text_tokenizer: Any) -> None:
    """Rejects a model whose turns were rendered differently, or whose chat template was modified.

    An imported folder may have its own template, for other programs, which says nothing about the rows of the
    training.

    Raises:
        UserError: if the fingerprints differ; the message names both.
    """
    file = Path(model) / TEMPLATE
    if file.is_file():
        record.check(model, template=template_fingerprint(file.read_bytes().decode("utf-8", "replace")))
    if not record.source:
        record.check(model, template=template_fingerprint(chat_template(text_tokenizer, record.form)))


def _speech_parts(
    model: str, codec: str | None, record: ModelRecord, log_mel: str | None, vocoder: str | None
) -> "tuple[SpeechTokenizer | None, Codec | None]":
    inside = Path(model) / CODEC
    if codec is None and (inside / "flow").is_dir():
        codec = str(inside)
    if codec is not None:
        opened = open_codec(codec, log_mel, vocoder)
        return opened.tokenizer, opened
    if (inside / "model.safetensors").is_file():
        return open_tokenizer(str(inside), log_mel), None
    if name := record.speech_tokenizer_name:
        try:
            return open_tokenizer(name, log_mel), None
        except UserError as error:
            raise UserError(
                f"{model} has no {CODEC}/, and the speech tokenizer of its training, {name}, cannot be "
                f"opened here ({error}): give the codec (--codec)"
            ) from error
    return None, None
