"""A running reply: its options, and the events in which it arrives.

TextDelta … AudioDelta … ReplyDone          ReplyDone comes exactly once, at the end
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
    """Options of a reply.

    Args:
        reply: Modality: text or speech.
        form: Form of a spoken reply. None: the form that the model was trained for.
        max_new_tokens: Maximum number of rows.
        text: Sampling of text.
        speech: Sampling of speech codes.
        seed: Seed of the sampling. None: drawn at random.
        voice: Name of the voice.

    Raises:
        UserError: if torch's generators do not accept the seed.
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
    """New text of a reply, in whole characters."""

    text: str


@dataclass(frozen=True)
class AudioDelta:
    """New audio of a reply.

    Args:
        samples_T: Samples at 24 kHz, float32 (n,).
    """

    samples_T: Tensor


@dataclass(frozen=True)
class CodesDelta:
    """New codes of a reply, before they are decoded; for visualisation and logging."""

    codes: list[int]


@dataclass
class Usage:
    """Row counts of a reply, and its times in seconds since the request.

    Args:
        prompt_rows: Number of rows of the prompt.
        cached_rows: Number of prompt rows whose keys and values were cached.
        prefilled_rows: Number of prompt rows that were computed.
        text_rows: Number of text ids generated.
        speech_rows: Number of codes generated.
        prompt_speech_rows: Number of codes in the prompt.
        first_row_sec: Time of the first row, after waiting and prefill.
        first_codes_sec: Time at which there were enough codes for the first audio.
        first_sound_sec: Time of the first audio.
        prefill_sec: Computing time of the prefill.
        flow_sec: Computing time of flow decoder and vocoder up to the first audio.
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
        reason: `stop` (ended by the model), `length` (`max_new_tokens` or the context was reached),
            `cancelled` or `failed`.
        rows: All rows that the model generated.
        prompt: Rows of the prompt.
        usage: Row counts and times.
        error: One-line error message if it failed, otherwise "".
    """

    reason: Reason
    rows: list[int]
    prompt: list[int]
    usage: Usage
    error: str = ""


Event = TextDelta | AudioDelta | CodesDelta | ReplyDone


class Reply:
    """Events of one reply, produced by the engine's threads. Iterate over it in a thread or in an event loop.

    Args:
        options: Options of the reply.
        prompt: Rows of the prompt.
        on_change: Called after `cancel`, and after an event was read, on the same thread.
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
        """Requests the end: at most one more row is generated, and `ReplyDone` follows."""
        self._cancelled.set()
        self._notify()

    @property
    def cancelled(self) -> bool:
        """Whether the end was requested."""
        return self._cancelled.is_set()

    @property
    def done(self) -> bool:
        """Whether `ReplyDone` was emitted."""
        return self._done

    @property
    def unsent_sec(self) -> float:
        """Seconds of audio that have not been read yet."""
        return self._unsent_samples / rates.DECODER_RATE_HZ

    def emit(self, event: Event) -> None:
        """Called by the engine, from any thread. Events after `ReplyDone` are dropped."""
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
        """The next event, or None if there is none yet."""
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
