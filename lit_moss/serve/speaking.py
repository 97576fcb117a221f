"""Converts the rows of a reply to its events of text and audio.

rows ─┬─ text ids ─ TextDelta
      └─ codes ─ CodesDelta ─ groups ─ flow decoder, vocoder (sound worker) ─ AudioDelta
"""

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_moss.codec.codec import Player
from lit_moss.codec.conformer import LOOKAHEAD_CODES
from lit_moss.llm.rows import RowFormat
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import AudioDelta, CodesDelta, Reply, TextDelta, Usage
from lit_moss.serve.sound_worker import SoundWorker

_CODE_SEC = 0.08


class TextStream:
    """Decodes text ids to text in whole characters, at constant cost per id.

    The concatenated pieces equal the text of all ids decoded together without special tokens: special tokens
    that a model generates, such as <|im_start|>, are not text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Ids before `_read` are already decoded; those from `_context` on are decoded again with the new
        # ones, because some tokenizers decode the first id of a text differently.
        self._ids: list[int] = []
        self._context = self._read = 0

    def push(self, text_id: int) -> str:
        """Adds an id; returns the text that it completes, which may be empty."""
        self._ids.append(text_id)
        return self._new(last=False)

    def flush(self) -> str:
        """Returns what is left at the end: bytes of an incomplete character."""
        return self._new(last=True)

    def _new(self, last: bool) -> str:
        known = self._decoded(self._ids[self._context : self._read])
        text = self._decoded(self._ids[self._context :])
        if len(text) <= len(known) or (text.endswith("\ufffd") and not last):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class Speaker:
    """Converts rows of one reply to its events.

    `take` and `finish` are called by the thread that generates rows; the sound worker decodes the audio.

    Args:
        model: Text tokenizer and codec.
        reply: Reply that receives the events.
        usage: Receives times and counts.
        began: `time.monotonic()` of the request.
        worker: Worker that decodes audio.
        on_change: Called by the worker after each task.
        on_failure: Called by the worker with an error.
    """

    def __init__(
        self,
        model: SpeechModel,
        reply: Reply,
        usage: Usage,
        began: float,
        worker: SoundWorker,
        on_change: Callable[[], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._reply, self._usage, self._began, self._worker = reply, usage, began, worker
        self._on_change, self._on_failure = on_change, on_failure
        self._format: RowFormat = model.lm.format
        f = self._format
        self._silent = {f.sosp_token_id, f.im_end_id, f.end_id}
        self._text = TextStream(model.text_tokenizer)
        self._model = model
        self._player: Player | None = None
        self._group: list[int] = []  # codes not yet passed to the worker
        # Codes taken by the row thread, passed to the worker, and decoded by the worker.
        self._taken = self._given = self._decoded = 0
        # A model may also generate sosp and codes in a text reply; they are not decoded.
        codec = model.codec if reply.options.reply == "speech" else None
        self._chunk = 0 if codec is None else codec.flow.config.chunk_codes
        if codec is not None:
            worker.submit(self, lambda: self._try(self._open))  # in parallel with the prefill

    @property
    def ahead_sec(self) -> float:
        """Seconds of audio that have not been read yet, decoded or still to be decoded."""
        return self._reply.unsent_sec + _CODE_SEC * (self._taken - self._decoded)

    def take(self, row: int) -> None:
        """Takes the next row of the reply."""
        f = self._format
        if row < f.text_vocab_size:
            if row not in self._silent:
                self._usage.text_rows += 1
                self._emit_text(self._text.push(row))
        elif row < f.eosp_row:
            code = row - f.text_vocab_size
            self._usage.speech_rows += 1
            self._reply.emit(CodesDelta([code]))
            if self._chunk:
                self._group.append(code)
                self._taken += 1
                # The first audio needs a chunk and its look-ahead codes.
                wanted = self._chunk + (0 if self._given else LOOKAHEAD_CODES)
                if len(self._group) >= wanted:
                    self._give()

    def finish(self, then: Callable[[], None]) -> None:
        """Ends the reply; `then` is called after its last audio."""
        self._emit_text(self._text.flush())
        if self._given or self._group:
            if self._group:
                self._give()
            self._worker.submit(self, lambda: self._try(self._flush))
            self._worker.submit(self, then)
        else:
            self._worker.drop(self)
            then()

    def drop(self) -> None:
        """Frees its resources; no more audio is decoded."""
        self._worker.drop(self)
        self._player = None

    def _emit_text(self, text: str) -> None:
        if text:
            self._reply.emit(TextDelta(text))

    def _give(self) -> None:
        codes, self._group = self._group, []
        self._given += len(codes)
        known = time.monotonic() - self._began
        self._worker.submit(self, lambda: self._try(lambda: self._speak(codes, known)))

    # --- in the worker --------------------------------------------------------------------------------------

    def _try(self, task: Callable[[], object]) -> None:
        if not self._reply.cancelled and not self._reply.done:
            try:
                task()
            except Exception as failure:
                self._on_failure(failure)
        self._on_change()

    def _open(self) -> Player:
        if self._player is None:
            self._player = self._model.player(self._reply.options.voice)
        return self._player

    def _speak(self, codes: list[int], known_sec: float) -> None:
        began = time.monotonic()
        samples_T = self._open().push(codes)
        self._decoded += len(codes)
        if self._usage.first_sound_sec is None:
            self._usage.flow_sec += time.monotonic() - began
            self._usage.first_codes_sec = known_sec
        self._emit_sound(samples_T)

    def _flush(self) -> None:
        self._emit_sound(self._open().flush())

    def _emit_sound(self, samples_T: Tensor) -> None:
        if len(samples_T):
            if self._usage.first_sound_sec is None:
                self._usage.first_sound_sec = time.monotonic() - self._began
            self._reply.emit(AudioDelta(samples_T))
