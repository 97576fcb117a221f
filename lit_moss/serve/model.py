"""What a server speaks with: language model, text tokenizer and codec, opened together and checked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_moss.data.conversation import Renderer
from lit_moss.devices import moved
from lit_moss.errors import UserError
from lit_moss.hub import open_codec, open_lm, open_tokenizer
from lit_moss.hub.codes_to_audio import voice_prompt
from lit_moss.hub.model_folder import CODEC, ModelRecord, record_of
from lit_moss.llm.backbone import load_text_tokenizer, text_tokenizer_fingerprint

if TYPE_CHECKING:
    from lit_moss.codec import Codec, SpeechTokenizer
    from lit_moss.codec.codec import Player
    from lit_moss.codec.flow import Prompt
    from lit_moss.llm import SplitLM

DEFAULT_VOICE = "default"


@dataclass
class SpeechModel:
    """A language model with all that turns sound and text into rows and back.

    Args:
        name: Name under which clients ask for it.
        lm: The language model.
        text_tokenizer: Its text tokenizer.
        speech_tokenizer: Sound -> codes; None answers text alone.
        codec: Codes -> sound; None if it has no decoder: replies are text alone.
        record: What is known about its training.
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
        self.renderer = Renderer(self.text_tokenizer, self.lm.format, self.record.form)
        codes = self.lm.format.eosp_token_id
        tokenizer = self.speech_tokenizer
        if tokenizer is not None and tokenizer.config.quantize_vocab_size != codes:
            raise UserError(
                f"the language model {self.name} has {codes} codes, the speech tokenizer has "
                f"{tokenizer.config.quantize_vocab_size}: give the codec of its training"
            )
        if self.codec is not None:
            self.voices = {DEFAULT_VOICE: self.codec.no_prompt(), **self.voices}
        self._players: dict[str, tuple[Prompt, Player]] = {}

    def player(self, voice: str) -> "Player":
        """A stream of one utterance in a voice, whose prompt is computed for the first utterance alone.

        Call it from one thread.
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
    ) -> "SpeechModel":
        """Opens a model, on one device.

        Args:
            model: A run, a checkpoint, a folder in the released layout, or a hub id.
            codec: See `open_codec`; None takes the folder `codec` of the model's, else the speech tokenizer
                of its training alone.
            device: auto, cpu, cuda.
            dtype: Of the language model's weights; None leaves it.
            log_mel: Features of the speech tokenizer, see `open_tokenizer`.
            voices: Name -> sound file of a voice to speak with.

        Raises:
            UserError: if a part is missing, or is not the one of the training.
        """
        lm = open_lm(model)
        record = record_of(model)
        if lm.tokenizer_folder is None:
            raise UserError(f"{model} has no text tokenizer: give a folder that `export` wrote")
        text_tokenizer = load_text_tokenizer(lm.tokenizer_folder)
        record.check(model, text_tokenizer=text_tokenizer_fingerprint(text_tokenizer))
        speech_tokenizer, opened = _speech_parts(model, codec, record, log_mel)
        if speech_tokenizer is not None:
            from lit_moss.codec.encoder import fingerprint

            record.check(model, speech_tokenizer=fingerprint(speech_tokenizer.encoder))
        if opened is not None:
            opened = moved(opened, device)
        elif speech_tokenizer is not None:
            speech_tokenizer = moved(speech_tokenizer, device)
        lm = moved(lm if dtype is None else lm.to(dtype), device).eval()
        prompts = {} if opened is None else {k: voice_prompt(opened, v) for k, v in (voices or {}).items()}
        return cls(Path(model).name or model, lm, text_tokenizer, speech_tokenizer, opened, record, prompts)


def _speech_parts(
    model: str, codec: str | None, record: ModelRecord, log_mel: str | None
) -> "tuple[SpeechTokenizer | None, Codec | None]":
    inside = Path(model) / CODEC
    if codec is None and (inside / "flow").is_dir():
        codec = str(inside)
    if codec is not None:
        opened = open_codec(codec, log_mel)
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
