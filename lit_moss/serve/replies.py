"""One reply in the making: what was asked for, and the events in which it arrives.

TextDelta … AudioDelta … ReplyDone          ReplyDone comes once and last, whatever ends the reply
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lit_moss.audio import rates
from lit_moss.data.conversation import Modality
from lit_moss.errors import UserError
from lit_moss.llm.replies import ReplyForm
from lit_moss.llm.sampling import Sampling

Reason = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True)
class ReplyOptions:
    """How to reply.

    Args:
        reply: Modality.
        form: Form of a spoken reply; None takes the one that the model was trained for.
        max_new_tokens: Most rows.
        text: Sampling of text.
        speech: Sampling of codes.
        seed: Of the sampling; None draws one.
        voice: Name of the voice that speaks.

    Raises:
        UserError: for a seed that torch's generators do not take.
    """

    reply: Modality = "speech"
    form: ReplyForm | None = None
    max_new_tokens: int = 500
    text: Sampling = field(default_factory=Sampling)
    speech: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    voice: str = "default"

    def __post_init__(self) -> None:
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}, expected a whole number from -2^63 to 2^63 - 1")


@dataclass(frozen=True)
class TextDelta:
    """New text of a reply; whole characters."""

    text: str


@dataclass(frozen=True)
class AudioDelta:
    """New sound of a reply.

    Args:
        samples_T: float32 (n,) at 24 kHz.
    """

    samples_T: Tensor


@dataclass(frozen=True)
class CodesDelta:
    """New codes of a reply, before they are sound; for pictures and records."""

    codes: list[int]


@dataclass
class Usage:
    """Rows of a reply, and where its time went, in seconds from the request.

    Args:
        prompt_rows: Rows of the prompt.
        cached_rows: Those of them whose keys and values were in the cache.
        prefilled_rows: Those that were computed.
        text_rows: Text ids made.
        speech_rows: Codes made.
        prompt_speech_rows: Codes in the prompt.
        first_row_sec: Until the first row: waiting and prefill.
        first_codes_sec: Until enough codes for the first sound.
        first_sound_sec: Until the first sound.
        prefill_sec: Computing time of the prefill.
        flow_sec: Computing time of flow decoder and vocoder up to the first sound.
    """

    prompt_rows: int = 0
    cached_rows: int = 0
    prefilled_rows: int = 0
    text_rows: int = 0
    speech_rows: int = 0
    prompt_speech_rows: int = 0
    first_row_sec: float | None = None
    first_codes_sec: float | None = None
    first_sound_sec: float | None = None
    prefill_sec: float = 0.0
    flow_sec: float = 0.0


@dataclass(frozen=True)
class ReplyDone:
    """The end of a reply.

    Args:
        reason: `stop`: the model ended it; `length`: `max_new_tokens` or the context was reached;
            `cancelled`; `failed`.
        rows: All rows that the model made.
        prompt: Rows before them.
        usage: Counts and times.
        error: One line, where it failed.
    """

    reason: Reason
    rows: list[int]
    prompt: list[int]
    usage: Usage
    error: str = ""


Event = TextDelta | AudioDelta | CodesDelta | ReplyDone


class Reply:
    """Events of one reply, made by the engine's threads; iterate over it in a thread or in an event loop.

    Args:
        options: What was asked for.
        prompt: Rows that it follows.
        on_change: Called after `cancel` and after an event was read, by the thread that did so.
    """

    def __init__(
        self, options: ReplyOptions, prompt: list[int], on_change: Callable[[], None] | None = None
    ) -> None:
        self.options, self.prompt = options, prompt
        self._on_change = on_change
        self._events: deque[Event] = deque()
        self._unsent_samples = 0
        self._changed = threading.Condition()
        self._wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._cancelled = threading.Event()
        self._done = False

    def cancel(self) -> None:
        """Asks for the end: at most one more row is made, and `ReplyDone` follows."""
        self._cancelled.set()
        self._notify()

    @property
    def cancelled(self) -> bool:
        """Whether its end was asked for."""
        return self._cancelled.is_set()

    @property
    def done(self) -> bool:
        """Whether `ReplyDone` was emitted."""
        return self._done

    @property
    def unsent_sec(self) -> float:
        """Seconds of sound that nobody has read yet."""
        return self._unsent_samples / rates.DECODER_RATE_HZ

    def emit(self, event: Event) -> None:
        """Called by the engine; from any thread. What comes after `ReplyDone` is dropped."""
        with self._changed:
            if self._done:
                return
            self._done = isinstance(event, ReplyDone)
            self._events.append(event)
            if isinstance(event, AudioDelta):
                self._unsent_samples += len(event.samples_T)
            self._changed.notify_all()
            wake = self._wake
        if wake is not None:
            loop, flag = wake
            if not loop.is_closed():
                loop.call_soon_threadsafe(flag.set)

    def _next(self) -> Event | None:
        """The next event, None if there is none yet."""
        with self._changed:
            if not self._events:
                return None
            event = self._events.popleft()
            if isinstance(event, AudioDelta):
                self._unsent_samples -= len(event.samples_T)
        self._notify()
        return event

    def _notify(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._next()
            if event is None:
                with self._changed:
                    while not self._events:
                        self._changed.wait()
                continue
            yield event
            if isinstance(event, ReplyDone):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        flag = asyncio.Event()
        with self._changed:
            self._wake = asyncio.get_running_loop(), flag
        while True:
            flag.clear()
            while (event := self._next()) is not None:
                yield event
                if isinstance(event, ReplyDone):
                    return
            await flag.wait()
