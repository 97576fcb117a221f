"""The engine: sessions on one model, whose replies are made row by row and heard chunk by chunk.

    sound in ─ speech tokenizer ─┐                                             (worker of sounds)
                                 ├─ conversation ─ prompt ─ language model ─┐  (worker of rows)
    text in ─────────────────────┘                                          │
    sound out ─ vocoder ─ flow decoder ─ codes ─────────────────────────────┘  (worker of sounds)

Interfaces (HTTP, websocket, page, Python) only move bytes: they open a `Session`, fill its conversation, ask
for a reply and read its events. All tensors are touched by the engine's own threads.
"""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.features import resample
from lit_moss.errors import UserError
from lit_moss.llm.replies import reply_text
from lit_moss.serve.conversation import Conversation, Message
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import (
    AudioDelta,
    CodesDelta,
    Reason,
    Reply,
    ReplyDone,
    ReplyOptions,
    TextDelta,
    Usage,
)
from lit_moss.serve.settings import Limits, SessionLimit


class UserTurn:
    """Speech of the user as it comes; encoded while it comes.

    Args:
        session: Whose turn it is.
        rate_hz: Rate of the samples.
    """

    def __init__(self, session: "Session", rate_hz: int) -> None:
        self._session, self.rate_hz = session, rate_hz
        self._waves: list[Tensor] = []
        self.samples = 0

    @property
    def seconds(self) -> float:
        """Length so far."""
        return self.samples / self.rate_hz

    def push(self, samples_T: Tensor) -> None:
        """Next samples, float32 (n,) in [-1, 1]; returns at once.

        Raises:
            UserError: if the turn becomes longer than `Limits.max_turn_sec`; the samples are not taken.
        """
        limit = self._session.engine.limits.max_turn_sec
        if (self.samples + len(samples_T)) / self.rate_hz > limit:
            raise UserError(f"a turn of more than {limit:g} s: expected a shorter one")
        self._waves.append(samples_T)
        self.samples += len(samples_T)

    def finish(self) -> "Future[list[int]]":
        """Ends the turn; its codes."""
        wave_T = torch.cat(self._waves) if self._waves else torch.zeros(0)
        return self._session.engine.encode(wave_T, self.rate_hz)

    def clear(self) -> None:
        """Forgets it."""
        self._waves, self.samples = [], 0


class Session:
    """One conversation with the model; close it when it is over.

    Attributes:
        engine: Whose session it is.
        conversation: Its turns.
        reply: The latest reply, running or not; None before the first.
    """

    def __init__(self, engine: "Engine", conversation: Conversation) -> None:
        self.engine, self.conversation = engine, conversation
        self.reply: Reply | None = None
        self.closed = False

    def listen(self, rate_hz: int = rates.DECODER_RATE_HZ) -> UserTurn:
        """A new turn of speech, outside of the conversation until its codes are added to it."""
        return UserTurn(self, rate_hz)

    def start_reply(
        self, options: ReplyOptions, messages: list[Message] | None = None, instructions: str | None = None
    ) -> Reply:
        """Begins to reply to the conversation; returns at once. The reply's turn is not added to it.

        Args:
            options: How to reply.
            messages: Turns to reply to instead of the conversation's own.
            instructions: Instead of the conversation's own.

        Raises:
            UserError: if a reply is running, the conversation is too long for the model, or the model cannot
                speak.
        """
        if self.reply is not None and not self.reply.done:
            raise UserError("a reply is being made already: cancel it, or wait for its end")
        conversation = self.conversation
        if instructions is not None:
            conversation = Conversation(conversation.renderer, instructions)
            conversation.messages = self.conversation.messages
        prompt = conversation.prompt(options.reply, options.form, messages)
        self.reply = self.engine._start(self, prompt, options)
        return self.reply

    def close(self) -> None:
        """Ends its reply and frees its place and its caches; a second call does nothing."""
        if not self.closed:
            self.closed = True
            if self.reply is not None:
                self.reply.cancel()
            self.engine._leave(self)


@dataclass
class Counts:
    """What `/metrics` shows; read by `lit_moss.serve.metrics`."""

    sessions: int = 0
    replies: int = 0
    rows: int = 0
    prefilled_rows: int = 0
    cached_rows: int = 0
    first_sound_sec: list[float] = field(default_factory=list)


class Engine:
    """Sessions on one model.

    Args:
        model: What speaks.
        limits: Bounds.
    """

    def __init__(self, model: SpeechModel, limits: Limits | None = None) -> None:
        self.model, self.limits = model, limits or Limits()
        self.counts = Counts()
        self._sessions: set[Session] = set()
        self._lock = threading.Lock()
        self._running: list[Any] = []
        self._changed = threading.Condition()
        self._closed = False
        self._sounds = ThreadPoolExecutor(1, thread_name_prefix="sounds")
        self._rows = threading.Thread(target=self._make_rows, name="rows", daemon=True)
        self._rows.start()

    # --- sessions -------------------------------------------------------------------------------------------

    def open_session(self, instructions: str = "") -> Session:
        """A new session.

        Raises:
            SessionLimit: if all are taken, or the engine is closing.
        """
        with self._lock:
            if self._closed or len(self._sessions) >= self.limits.max_sessions:
                raise SessionLimit(f"all {self.limits.max_sessions} sessions are taken")
            session = Session(self, Conversation(self.model.renderer, instructions))
            self._sessions.add(session)
            self.counts.sessions = len(self._sessions)
        return session

    def _leave(self, session: Session) -> None:
        with self._lock:
            self._sessions.discard(session)
            self.counts.sessions = len(self._sessions)

    def warm_up(self) -> None:
        """One short reply, so that the first client does not wait for the first run of everything."""
        session = self.open_session()
        try:
            session.conversation.add(session.conversation.text_message("user", "Hello."))
            can_speak = self.model.codec is not None
            for _ in session.start_reply(
                ReplyOptions(reply="speech" if can_speak else "text", max_new_tokens=10)
            ):
                pass
        finally:
            session.close()

    def close(self) -> None:
        """Cancels all replies and ends the threads."""
        with self._lock:
            self._closed = True
            sessions = list(self._sessions)
        for session in sessions:
            session.close()
        with self._changed:
            self._changed.notify_all()
        self._rows.join()
        self._sounds.shutdown()

    # --- sound in -------------------------------------------------------------------------------------------

    def encode(self, wave_T: Tensor, rate_hz: int) -> "Future[list[int]]":
        """Codes of a wave, float32 (T,) in [-1, 1]."""
        return self._sounds.submit(self._encode, wave_T, rate_hz)

    def _encode(self, wave_T: Tensor, rate_hz: int) -> list[int]:
        tokenizer = self.model.speech_tokenizer
        if tokenizer is None:
            raise UserError(f"{self.model.name} cannot listen: start the server with --codec")
        wave_T = resample(wave_T, rate_hz, rates.TOKENIZER_RATE_HZ)
        codes = tokenizer.encode(wave_T, rates.TOKENIZER_RATE_HZ)
        assert isinstance(codes, Tensor)
        return codes.tolist()

    # --- replies --------------------------------------------------------------------------------------------

    def _start(self, session: Session, prompt: list[int], options: ReplyOptions) -> Reply:
        model = self.model
        if options.reply == "speech" and model.codec is None:
            raise UserError(f"{model.name} has no decoder and cannot speak: start the server with --codec")
        if options.reply == "speech" and options.voice not in model.voices:
            raise UserError(f"no voice {options.voice!r}, expected one of {', '.join(model.voices)}")
        model.lm.check_context(len(prompt))
        most = min(options.max_new_tokens, self.limits.max_new_tokens)
        reply = Reply(replace(options, max_new_tokens=most), prompt)
        with self._changed:
            self._running.append(_Running(reply, self._rows_of(reply)))
            self._changed.notify_all()
        return reply

    def _rows_of(self, reply: Reply) -> Iterator[int]:
        options = reply.options
        seed = random.getrandbits(62) if options.seed is None else options.seed
        return self.model.lm.generate(
            reply.prompt, max_new_tokens=options.max_new_tokens, stream=True, text=options.text,
            speech=options.speech, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    def _make_rows(self) -> None:
        while True:
            with self._changed:
                while not self._running and not self._closed:
                    self._changed.wait()
                if not self._running:
                    return
                running = list(self._running)
            for one in running:
                if self._step(one):
                    with self._changed:
                        self._running.remove(one)

    def _step(self, one: "_Running") -> bool:
        """One more row of a reply; whether it was the last."""
        reason: Reason | None = None
        error = ""
        try:
            if one.reply.cancelled:
                reason = "cancelled"
            else:
                row = next(one.source, None)
                if row is None:
                    reason = "stop" if one.rows and one.rows[-1] in self.model.lm.stop_ids else "length"
                else:
                    one.rows.append(row)
                    self.counts.rows += 1
                    self._sounds.submit(self._speak, one, row)
        except Exception as failure:
            reason, error = "failed", str(failure) or type(failure).__name__
        if reason is not None:
            self._sounds.submit(self._finish, one, reason, error)
        return reason is not None

    # --- what a row sounds like -----------------------------------------------------------------------------

    def _speak(self, one: "_Running", row: int) -> None:
        f = self.model.lm.format
        if row < f.text_vocab_size:
            text = self.model.text_tokenizer.decode(reply_text(one.rows, f))
            if len(text) > len(one.text) and not text.endswith("\ufffd"):
                one.reply.emit(TextDelta(text[len(one.text) :]))
                one.text = text
        elif row < f.eosp_row and self.model.codec is not None and not one.reply.cancelled:
            if one.player is None:
                one.player = self.model.codec.stream(self.model.voices[one.reply.options.voice])
            one.reply.emit(CodesDelta([row - f.text_vocab_size]))
            self._emit_sound(one, one.player.push([row - f.text_vocab_size]))

    def _emit_sound(self, one: "_Running", samples_T: Tensor) -> None:
        if len(samples_T):
            if one.usage.first_sound_sec is None:
                one.usage.first_sound_sec = time.monotonic() - one.began
                self.counts.first_sound_sec.append(one.usage.first_sound_sec)
            one.reply.emit(AudioDelta(samples_T))

    def _finish(self, one: "_Running", reason: Reason, error: str) -> None:
        try:
            if one.player is not None and reason in ("stop", "length"):
                self._emit_sound(one, one.player.flush())
        except Exception as failure:
            reason, error = "failed", str(failure) or type(failure).__name__
        one.reply.emit(ReplyDone(reason, one.rows, one.reply.prompt, one.usage, error))


@dataclass
class _Running:
    """A reply that is being made."""

    reply: Reply
    source: Iterator[int]
    rows: list[int] = field(default_factory=list)
    text: str = ""
    player: Any = None
    usage: Usage = field(default_factory=Usage)
    began: float = field(default_factory=time.monotonic)
