"""Prompts for `predict`: text or audio in, text or codes out, in any of the four modality pairs.

A line of a prompts file holds a "text", an "audio_filepath", or "messages": a conversation that ends with the
user's turn, see `lit_moss.corpora.conversations`. Optional are "id", "reply" (text or speech), "reply_form"
(of a spoken reply: direct, guided or interleaved), "system" (a system prompt that replaces the default one),
and "offset" and "duration" of the recording in seconds. Paths are relative to the file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningDataModule

from lit_moss.corpora.conversations import messages_of
from lit_moss.data.batches import PlainLoader
from lit_moss.data.conversation import Modality, Renderer, Turn
from lit_moss.errors import UserError
from lit_moss.llm.replies import FORMS, FormName, ReplyForm, reply_codes, reply_text, split_reply
from lit_moss.llm.rows import RowFormat, audio_vocab_for
from lit_moss.records import Record, json_lines, printable

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


def answer_record(
    prompt: Prompt, rows: list[int], tokenizer: Any, row_format: RowFormat, stop_ids: Sequence[int]
) -> dict[str, Any]:
    """A reply as plain data: its text, its codes, and whether it ended.

    For spoken replies that also contain text, the order of both is included, as [modality, number of ids].

    Args:
        prompt: The prompt.
        rows: Rows of the reply.
        tokenizer: Text tokenizer.
        row_format: Row format.
        stop_ids: Text ids that end a reply.
    """
    record = {
        "id": prompt.id,
        "reply": prompt.reply,
        "text": tokenizer.decode(reply_text(rows, row_format)),
        "codes": reply_codes(rows, row_format),
        "ended": bool(rows) and rows[-1] in stop_ids,
    }
    if prompt.form != "direct":
        parts = [[modality, len(ids)] for modality, ids in split_reply(rows, row_format)]
        record |= {"reply_form": prompt.form, "parts": parts}
    return record


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
            raise UserError(
                "data.prompts is empty: expected files of JSON lines with text, audio_filepath or messages"
            )
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
            raise UserError(f"no prompts {path}: expected JSON lines with text, audio_filepath or messages")
        for record in json_lines(path, "an object with text, audio_filepath or messages"):
            name, system = record.name("id") or f"{path.stem}-{record.number}", record.text("system")
            choice = record.choice("reply", ("text", "speech")) or self.reply
            reply: Modality = "text" if choice == "text" else "speech"
            form_name = record.choice("reply_form", FORMS)
            form = FORMS[form_name] if form_name else self.reply_form
            turns, user = self._turns(record, path.parent)
            try:
                rows = Renderer(self.tokenizer, self.format, form).prompt(turns, user, reply, system=system)
            except UserError as error:
                raise UserError(f"{record.where}: {error}") from error
            yield Prompt(name, rows, reply, form.name if reply == "speech" else "direct")

    def _turns(self, record: Record, folder: Path) -> tuple[list[Turn], Modality]:
        """Turns of a line, and the modality of the user's: speech if all of them have sound."""
        text, audio = record.text("text"), record.path("audio_filepath")
        if sum(map(bool, (text, audio, record.content.get("messages")))) != 1:
            got = sorted(printable(key) for key in record.content)
            raise UserError(f"{record.where}: got {got}, expected either text, audio_filepath or messages")
        if text:
            return [Turn("user", text)], "text"
        if audio:
            span = (record.seconds("offset") or 0.0, record.seconds("duration"))
            codes = self._encode(folder / audio, *span, record.whole_number("channel"))
            return [Turn("user", codes=codes)], "speech"
        messages = messages_of(record, folder.absolute(), is_prompt=True)
        spoken = all(message.recording for message in messages if message.role == "user")
        turns = []
        for message in messages:
            recording, codes = message.recording, None
            if recording is not None and (spoken or message.role == "assistant"):
                r = recording
                codes = self._encode(r.audio, r.offset_sec, r.duration_sec, r.channel)
            turns.append(Turn(message.role, message.text, codes))
        return turns, "speech" if spoken else "text"

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
