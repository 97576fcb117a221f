"""Prompts for `predict`: text or audio in, text or codes out, in any of the four modality pairs.

A line of a prompts file: {"id": "…", "text": "…"} or {"id": "…", "audio_filepath": "…"}, optionally with
"reply" (text or speech), "reply_form" (of a spoken reply: direct, guided or interleaved), "system" (a system
prompt that replaces the default one), and "offset" and "duration" of the recording in seconds. Paths are
relative to the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningDataModule

from lit_moss.data.batches import PlainLoader
from lit_moss.data.conversation import Modality, Renderer, Turn
from lit_moss.errors import UserError
from lit_moss.llm.replies import FORMS, FormName, ReplyForm
from lit_moss.llm.rows import RowFormat, audio_vocab_for
from lit_moss.records import json_lines, printable

if TYPE_CHECKING:
    from lit_moss.codec.tokenizer import SpeechTokenizer


@dataclass  # not frozen: Lightning cannot move frozen dataclasses to a device
class Prompt:
    """One prompt.

    Args:
        id: Name of the prompt.
        rows: Rows up to the start of the reply.
        reply: Modality of the reply.
        form: Form of a spoken reply; `direct` for a text reply.
    """

    id: str
    rows: list[int]
    reply: Modality
    form: FormName = "direct"


class PromptDataModule(LightningDataModule):
    """Prompts as rows, and the text tokenizer that decodes the replies.

    Args:
        prompts: Prompts files (JSON lines).
        backbone: Backbone whose text tokenizer is used: folder, Hugging Face id, `embedded:smollm2-135m`.
        speech_tokenizer: Speech tokenizer; its codebook size determines the row format, and it encodes
            prompts that are audio.
        log_mel: Features of the speech tokenizer, `causal` or `whisper`. None: as stated in the tokenizer's
            folder, see `SpeechTokenizer.from_pretrained`.
        reply: Modality of the reply for lines without "reply": text or speech.
        batch_size: Number of prompts answered at once.
        reply_form: Form of spoken replies for lines without "reply_form"; should be the form that the model
            was trained for, see `SFTDataModule`.

    Attributes:
        tokenizer: The text tokenizer; set by `setup`.
    """

    def __init__(
        self,
        prompts: list[str] | None = None,
        backbone: str = "embedded:smollm2-135m",
        speech_tokenizer: str = "embedded:whisper-tiny-kmeans",
        log_mel: Literal["causal", "whisper"] | None = None,
        reply: Literal["text", "speech"] = "speech",
        batch_size: int = 8,
        reply_form: Literal["direct", "guided", "interleaved"] = "direct",
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size is {batch_size}, expected 1 or more")
        self.prompts, self.backbone, self.speech_tokenizer = list(prompts or []), backbone, speech_tokenizer
        self.log_mel = log_mel
        self.reply: Modality = reply
        self.batch_size = batch_size
        self.reply_form = ReplyForm(reply_form)
        self.tokenizer: Any = None
        self._speech_tokenizer: SpeechTokenizer | None = None
        self._format: RowFormat | None = None

    @property
    def format(self) -> RowFormat:
        """Row format; available after `setup`."""
        assert self._format is not None, "call setup first"
        return self._format

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of both tokenizers, to compare with those of the checkpoint's documents."""
        from lit_moss.hub import speech_tokenizer_fingerprint
        from lit_moss.llm.backbone import text_tokenizer_fingerprint

        return {
            "text_tokenizer": text_tokenizer_fingerprint(self.tokenizer),
            "speech_tokenizer": speech_tokenizer_fingerprint(self.speech_tokenizer, self.log_mel),
        }

    def setup(self, stage: str) -> None:
        from lit_moss.hub import open_tokenizer
        from lit_moss.llm.backbone import load_text_tokenizer, row_format

        if self._speech_tokenizer is not None:
            return
        if not self.prompts:
            raise UserError("data.prompts is empty: expected files of JSON lines with text or audio_filepath")
        self.tokenizer = load_text_tokenizer(self.backbone)
        self._speech_tokenizer = open_tokenizer(self.speech_tokenizer, self.log_mel)
        size = self._speech_tokenizer.config.quantize_vocab_size
        self._format = row_format(self.tokenizer, audio_vocab_for(size), eosp=size)

    def predict_dataloader(self) -> PlainLoader:
        prompts = [prompt for name in self.prompts for prompt in self._read(Path(name))]
        size = self.batch_size
        return PlainLoader([prompts[i : i + size] for i in range(0, len(prompts), size)])

    def _read(self, path: Path) -> Iterator[Prompt]:
        if not path.is_file():
            raise UserError(f"no prompts {path}: expected JSON lines with text or audio_filepath")
        for record in json_lines(path, "an object with text or audio_filepath"):
            name, system = record.name("id") or f"{path.stem}-{record.number}", record.text("system")
            text, audio = record.text("text"), record.path("audio_filepath")
            span = (
                record.seconds("offset") or 0.0,
                record.seconds("duration"),
                record.whole_number("channel"),
            )
            choice = record.choice("reply", ("text", "speech")) or self.reply
            reply: Modality = "text" if choice == "text" else "speech"
            form_name = record.choice("reply_form", FORMS)
            form = FORMS[form_name] if form_name else self.reply_form
            if bool(text) == bool(audio):
                got = sorted(printable(key) for key in record.content)
                raise UserError(f"{record.where}: got {got}, expected either text or audio_filepath")
            if text:
                turn, user = Turn("user", text), "text"
            else:
                turn, user = Turn("user", codes=self._encode(path.parent / str(audio), *span)), "speech"
            rows = Renderer(self.tokenizer, self.format, form).prompt([turn], user, reply, system=system)
            yield Prompt(name, rows, reply, form.name if reply == "speech" else "direct")

    def _encode(
        self, path: Path, offset_sec: float, duration_sec: float | None, channel: int | None
    ) -> list[int]:
        from lit_moss.audio import io, rates

        try:
            wave = io.read(path, rates.TOKENIZER_RATE_HZ, offset_sec, duration_sec, channel=channel)
        except io.UnreadableAudio as error:
            raise UserError(str(error)) from error
        assert self._speech_tokenizer is not None, "call setup first"
        return self._speech_tokenizer.encode(wave, rates.TOKENIZER_RATE_HZ).tolist()
