"""The engine: sessions with one model, whose replies are generated row by row and decoded to audio in chunks.

    audio in ─ speech tokenizer ─┐                                             (sound worker)
                                 ├─ conversation ─ prompt ─ language model ─┐  (row worker)
    text in ─────────────────────┘                                          │
    audio out ─ vocoder ─ flow decoder ─ codes ─────────────────────────────┘  (sound worker)

Interfaces (HTTP, websocket, page, Python) only transfer bytes: they open a `Session`, fill its conversation,
request a reply and read its events. All tensors are handled by the engine's own threads.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.waves import check_wave
from lit_moss.errors import UserError
from lit_moss.serve.conversation import Conversation, Message
from lit_moss.serve.counts import Counts
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import Reason, Reply, ReplyDone, ReplyOptions, Usage
from lit_moss.serve.row_worker import RowWorker, Running, one_line
from lit_moss.serve.settings import Limits, SessionLimit
from lit_moss.serve.sound_worker import Listener, SoundWorker
from lit_moss.serve.speaking import Speaker


class UserTurn:
    """Speech of the user, encoded as it arrives.

    Use it from one thread only.

    Args:
        session: Session to which the turn belongs.
        rate_hz: Sample rate of the audio in Hz.

    Attributes:
        samples: Number of samples so far.
    """

    def __init__(self, session: "Session", rate_hz: int) -> None:
        self._session, self.rate_hz = session, rate_hz
        self._new()

    def _new(self) -> None:
        self.samples = 0
        self._opening: list[int] | None = None
        self._turns: tuple[object, ...] = ()
        self._listener = self._session.engine.listener(self.rate_hz, self._look_ahead)

    @property
    def seconds(self) -> float:
        """Length so far, in seconds."""
        return self.samples / self.rate_hz

    def push(self, samples_T: Tensor) -> None:
        """Pushes samples, float32 (n,) in [-1, 1]; returns immediately.

        Raises:
            UserError: if the samples are invalid, or the turn would exceed `Limits.max_turn_sec`; the samples
                are discarded.
        """
        limit = self._session.engine.limits.max_turn_sec
        if (self.samples + len(samples_T)) / self.rate_hz > limit:
            raise UserError(f"a turn of more than {limit:g} s: expected a shorter one")
        try:
            samples_T = check_wave(samples_T)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.samples += len(samples_T)
        self._render()
        self._listener.push(samples_T)

    def finish(self) -> "Future[list[int]]":
        """Ends the turn; returns its codes, or a UserError if the model cannot listen."""
        return self._listener.finish()

    def clear(self) -> None:
        """Discards the turn; the next samples start it again."""
        self._listener.drop()
        self._new()

    def _render(self) -> None:
        """Computes the rows before the codes of this turn, again whenever the conversation has changed."""
        session = self._session
        conversation, expected = session.conversation, session.expected
        turns = expected, conversation.instructions, *((m.id, len(m.rows)) for m in conversation.messages)
        if expected is not None and turns != self._turns:
            rows = conversation.opening(expected.reply, expected.form)
            start = [*conversation.renderer.head("user"), conversation.format.sosp_token_id]
            self._opening, self._turns = rows + start, turns

    def _look_ahead(self, codes: list[int]) -> None:
        """Called by the sound worker: lets the model process codes while the user is speaking."""
        if self._opening is not None:
            first = self._session.conversation.format.text_vocab_size
            self._session.ahead = [*self._opening, *(first + code for code in codes)]
            self._session.engine.rows.wake()


class Session:
    """A conversation with the model; close it at the end.

    Attributes:
        engine: Engine of the session.
        conversation: Turns of the conversation.
        reply: The latest reply, running or not; None before the first.
        expected: Options of the expected reply: while the user is speaking, the turn is computed into the
            cache of the corresponding prompt. Default: options of the latest reply.
    """

    def __init__(self, engine: "Engine", conversation: Conversation, scope: object = None) -> None:
        self.engine, self.conversation = engine, conversation
        self._scope = scope
        self.reply: Reply | None = None
        self.expected: ReplyOptions | None = None
        self.ahead: list[int] | None = None
        self.closed = False

    @property
    def scope(self) -> object:
        """Sessions with an equal scope may use this session's cache.

        If it is the session itself, no other session can.
        """
        return self if self._scope is None else self._scope

    def listen(self, rate_hz: int = rates.DECODER_RATE_HZ) -> UserTurn:
        """A new turn of speech, which is not part of the conversation until its codes are added."""
        return UserTurn(self, rate_hz)

    def start_reply(
        self, options: ReplyOptions, messages: list[Message] | None = None, instructions: str | None = None
    ) -> Reply:
        """Starts a reply to the conversation; returns immediately. The turn of the reply is not added.

        Args:
            options: Options of the reply.
            messages: Turns to reply to, instead of the conversation's own.
            instructions: Instructions to use instead of the conversation's own.

        Raises:
            UserError: if a reply is running, the conversation is too long for the model, or the model cannot
                speak.
            SessionLimit: if the engine is closing.
        """
        if self.reply is not None and not self.reply.done:
            raise UserError("a reply is being made already: cancel it, or wait for its end")
        conversation = self.conversation
        if instructions is not None:
            conversation = Conversation(conversation.renderer, instructions)
            conversation.messages = self.conversation.messages
        prompt = conversation.prompt(options.reply, options.form, messages)
        self.reply = self.engine._start(self, prompt, options)
        self.expected, self.ahead = options, None
        return self.reply

    def close(self) -> None:
        """Ends its reply and frees its place and caches; calling it again has no effect."""
        if not self.closed:
            self.closed, self.ahead = True, None
            if self.reply is not None:
                self.reply.cancel()
            self.engine._leave(self)


class Engine:
    """Sessions with one model.

    Args:
        model: Language model and codec.
        limits: Limits for clients.
        threads: Number of CPU threads for torch operations, for each of the two workers; None: half of the
            cores.

    Raises:
        UserError: if the model's text tokenizer lacks the tokens for turns.

    Attributes:
        counts: Statistics.
        rows: Worker of the language model.
        sounds: Worker of audio encoding and decoding.
    """

    def __init__(self, model: SpeechModel, limits: Limits | None = None, threads: int | None = None) -> None:
        self.model, self.limits = model, limits or Limits()
        _ = model.renderer  # rejects a model that cannot chat before its first client
        self.counts = Counts()
        self._sessions: set[Session] = set()
        self._lock = threading.Lock()
        self._draining = False
        threads = threads or max(1, torch.get_num_threads() // 2)
        self.sounds = SoundWorker(_codec_device(model), threads)
        self.rows = RowWorker(model, self.limits, self.counts, self._end, threads)

    # --- sessions -------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> list[Session]:
        """Open sessions."""
        with self._lock:
            return list(self._sessions)

    @property
    def draining(self) -> bool:
        """Whether sessions and replies are refused because the engine is closing."""
        return self._draining

    def open_session(self, instructions: str = "", scope: object = None) -> Session:
        """Opens a session.

        Args:
            instructions: Text to append to the system prompt.
            scope: Identifies the requester if a client's next question comes in another session, which can
                then use the caches of the earlier ones. None: no sharing beyond the system prompt.

        Raises:
            SessionLimit: if all sessions are in use, or the engine is closing.
        """
        with self._lock:
            if self._draining or len(self._sessions) >= self.limits.max_sessions:
                self.counts.refused += 1
                closing = "the server is closing"
                taken = f"all {self.limits.max_sessions} sessions are taken"
                raise SessionLimit(closing if self._draining else taken)
            session = Session(self, Conversation(self.model.renderer, instructions), scope)
            self._sessions.add(session)
            self.counts.sessions += 1
        self.rows.join(session)
        return session

    def _leave(self, session: Session) -> None:
        with self._lock:
            self._sessions.discard(session)
        self.rows.wake()

    def warm_up(self) -> None:
        """Runs one short, uncounted turn and reply, so that the first client need not wait."""
        session = self.open_session()
        try:
            conversation = session.conversation
            conversation.add(conversation.text_message("user", "Hello."))
            if self.model.speech_tokenizer is not None:
                codes = self.encode(torch.zeros(rates.TOKENIZER_RATE_HZ), rates.TOKENIZER_RATE_HZ).result()
                conversation.add(conversation.speech_message("user", codes))
            reply = "speech" if self.model.codec is not None else "text"
            for _ in session.start_reply(ReplyOptions(reply=reply, max_new_tokens=10)):
                pass
        finally:
            session.close()
        self.counts.reset()

    def drain(self, timeout_sec: float) -> bool:
        """Refuses new sessions and replies, waits for running replies to end, and closes the engine.

        Returns:
            Whether all replies ended in time; the others are cancelled.
        """
        self._draining = True
        deadline = time.monotonic() + timeout_sec
        while (running := self.rows.running) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.close()
        return not running

    def close(self) -> None:
        """Cancels all replies and ends the threads; calling it again has no effect."""
        self._draining = True
        for session in self.sessions:
            session.close()
        self.rows.close()
        self.sounds.close()

    # --- audio in -------------------------------------------------------------------------------------------

    def encode(self, wave_T: Tensor, rate_hz: int) -> "Future[list[int]]":
        """Codes of a wave, float32 (T,) in [-1, 1], or a UserError if the model cannot listen."""
        listener = self.listener(rate_hz)
        listener.push(wave_T)
        return listener.finish()

    def listener(self, rate_hz: int, on_codes: Callable[[list[int]], None] | None = None) -> Listener:
        """Creates an encoder for the audio of one turn; see `Listener`."""
        listener = Listener(self.sounds, self.model.speech_tokenizer, rate_hz, on_codes)
        if self.model.speech_tokenizer is None:
            listener.fail(UserError(f"{self.model.name} cannot listen: start the server with --codec"))
        return listener

    # --- replies --------------------------------------------------------------------------------------------

    def _start(self, session: Session, prompt: list[int], options: ReplyOptions) -> Reply:
        model, limits = self.model, self.limits
        if self._draining or session.closed:
            raise SessionLimit("the session or the server is closing")
        if options.reply == "speech" and model.codec is None:
            raise UserError(f"{model.name} has no decoder and cannot speak: start the server with --codec")
        if options.reply == "speech" and options.voice not in model.voices:
            raise UserError(f"no voice {options.voice!r}, expected one of {', '.join(model.voices)}")
        model.lm.check_context(len(prompt))
        if len(prompt) >= limits.max_context_rows:
            raise UserError(
                f"a conversation of {len(prompt)} rows, expected less than {limits.max_context_rows}: begin "
                "a new one"
            )
        most = min(options.max_new_tokens, limits.max_new_tokens)
        reply = Reply(replace(options, max_new_tokens=most), prompt, self.rows.wake)
        seed = random.getrandbits(62) if options.seed is None else options.seed
        usage = Usage(prompt_rows=len(prompt), prompt_speech_rows=len(model.lm.format.codes(prompt)))
        one = Running(session, reply, seed, usage)
        one.speaker = Speaker(
            model, reply, usage, one.began, self.sounds, self.rows.wake,
            lambda failure: self._end(one, "failed", one_line(failure)),
        )  # fmt: skip
        self.rows.start(one)
        return reply

    def _end(self, one: Running, reason: Reason, error: str) -> None:
        """Ends a reply; whatever ends it and in which thread, `ReplyDone` is sent exactly once."""
        with self._lock:
            if one.ended:
                return
            one.ended = True
        try:
            if one.speaker is not None:
                one.speaker.drop()
            self.counts.reply(reason, one.usage)
        finally:
            self.rows.remove(one)
            one.reply.emit(ReplyDone(reason, one.rows, one.reply.prompt, one.usage, error))


def _codec_device(model: SpeechModel) -> torch.device:
    if model.speech_tokenizer is not None:
        return model.speech_tokenizer.device
    return torch.device("cpu") if model.codec is None else model.codec.flow.device
