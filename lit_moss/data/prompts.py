"""Prompts for `predict`: text or audio in, text or codes out, in any of the four modality pairs.

A line of a prompts file: {"id": "…", "text": "…"} or {"id": "…", "audio_filepath": "…"}, optionally "reply"
(text or speech), "system" (a system prompt in place of the default one), and "offset" and "duration" of the
recording in seconds. Paths are relative to the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch import LightningDataModule

from lit_moss.data.conversation import Modality, Renderer, Turn
from lit_moss.errors import UserError
from lit_moss.llm.rows import RowFormat, audio_vocab_for
from lit_moss.records import json_lines, printable


@dataclass  # not frozen: Lightning's moving of batches takes no frozen ones
class Prompt:
    """One question.

    Args:
        id: Its name.
        rows: Rows up to where the reply begins.
        reply: Modality of the reply.
    """

    id: str
    rows: list[int]
    reply: Modality


class PromptDataModule(LightningDataModule):
    """Prompts as rows, and what turns replies back into text.

    Args:
        prompts: Files of prompts, JSON lines.
        backbone: Whose tokenizer.
        speech_tokenizer: Speech tokenizer: its codebook's size belongs to the rows, and it encodes prompts that are
            audio.
        log_mel: Features of the speech tokenizer, `causal` or `whisper`; None takes what it states, see
            `SpeechTokenizer.from_pretrained`.
        reply: Modality of replies where a line names none.
        batch_size: Prompts answered together.
    """

    def __init__(
        self,
        prompts: list[str] | None = None,
        backbone: str = "embedded:smollm2-135m",
        speech_tokenizer: str = "embedded:whisper-tiny-kmeans",
        log_mel: Literal["causal", "whisper"] | None = None,
        reply: Literal["text", "speech"] = "speech",
        batch_size: int = 8,
    ) -> None:
        super().__init__()
        self.prompts, self.backbone, self.speech_tokenizer = list(prompts or []), backbone, speech_tokenizer
        self.log_mel = log_mel
        self.reply: Modality = reply
        self.batch_size = batch_size
        self.tokenizer: Any = None
        self._codec: Any = None
        self._format: RowFormat | None = None

    @property
    def format(self) -> RowFormat:
        """Ids of the rows."""
        assert self._format is not None
        return self._format

    def fingerprints(self) -> dict[str, str]:
        """Which tokenizers make the rows; compared with those of the checkpoint's documents."""
        from lit_moss.hub import speech_tokenizer_fingerprint
        from lit_moss.llm.backbone import text_tokenizer_fingerprint

        return {
            "text_tokenizer": text_tokenizer_fingerprint(self.tokenizer),
            "speech_tokenizer": speech_tokenizer_fingerprint(self.speech_tokenizer, self.log_mel),
        }

    def setup(self, stage: str) -> None:
        from lit_moss.hub import open_tokenizer
        from lit_moss.llm.backbone import load_text_tokenizer, row_format

        if self._format is not None:
            return
        if not self.prompts:
            raise UserError("data.prompts is empty: expected files of JSON lines with text or audio_filepath")
        self.tokenizer, self._codec = (
            load_text_tokenizer(self.backbone),
            open_tokenizer(self.speech_tokenizer, self.log_mel),
        )
        size = self._codec.config.quantize_vocab_size
        self._format = row_format(self.tokenizer, audio_vocab_for(size), eosp=size)

    def predict_dataloader(self) -> "_Batches":
        found = [prompt for name in self.prompts for prompt in self._read(Path(name))]
        return _Batches([found[i : i + self.batch_size] for i in range(0, len(found), self.batch_size)])

    def _read(self, path: Path) -> Iterator[Prompt]:
        if not path.is_file():
            raise UserError(f"no prompts {path}: expected JSON lines with text or audio_filepath")
        renderer = Renderer(self.tokenizer, self.format)
        for record in json_lines(path, "an object with text or audio_filepath"):
            name, system = record.name("id") or f"{path.stem}-{record.number}", record.text("system")
            text, audio = record.text("text"), record.path("audio_filepath")
            span = (record.seconds("offset") or 0.0, record.seconds("duration"))
            reply = cast(Modality, record.choice("reply", ("text", "speech")) or self.reply)
            if bool(text) == bool(audio):
                got = sorted(printable(key) for key in record.content)
                raise UserError(f"{record.where}: got {got}, expected either text or audio_filepath")
            if text:
                turn, user = Turn("user", text), "text"
            else:
                turn, user = Turn("user", codes=self._encode(path.parent / str(audio), *span)), "speech"
            rows = renderer.prompt([turn], user, reply, system=system)
            yield Prompt(name, rows, reply)

    def _encode(self, path: Path, offset_sec: float, duration_sec: float | None) -> list[int]:
        from lit_moss.audio import io, rates

        try:
            wave = io.read(path, rates.TOKENIZER_RATE_HZ, offset_sec, duration_sec)
        except io.UnreadableAudio as error:
            raise UserError(str(error)) from error
        return self._codec.encode(wave, rates.TOKENIZER_RATE_HZ).tolist()


class _Batches:
    """A loader that Lightning does not rebuild."""

    def __init__(self, batches: list[list[Prompt]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Prompt]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
