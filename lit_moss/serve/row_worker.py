"""The thread that runs the language model: each step generates one row for every active reply.

    round   end finished replies ─ one piece of a prompt ─ one row of each reply that is not paused

A reply is paused while its client has more than `Limits.max_unsent_sec` of unread audio; the others continue.
All keys and values belong to this thread.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from lit_moss.llm.sessions import PIECE_ROWS, Context, ContextPool, Generation, Prefill, step
from lit_moss.serve.counts import Counts
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import Reason, Reply, Usage
from lit_moss.serve.settings import Limits
from lit_moss.serve.sound_worker import own_stream
from lit_moss.serve.speaking import Speaker

_logger = logging.getLogger(__name__)


class Owner(Protocol):
    """Owner of caches: a session.

    Attributes:
        closed: Whether it is closed.
        ahead: Rows with which its next prompt will begin, to be computed in advance, or None.
        scope: Sessions with an equal scope may use its caches later, see `ContextPool`; if it is the session
            itself: none.
    """

    closed: bool
    ahead: list[int] | None

    @property
    def scope(self) -> object: ...


@dataclass(eq=False)
class Running:
    """A reply that is being generated.

    Args:
        owner: Session of the reply.
        reply: The reply, which receives the events.
        seed: Seed of the sampling.
        usage: Row counts and times.
        began: `time.monotonic()` of the request.
    """

    owner: Owner
    reply: Reply
    seed: int
    usage: Usage
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.generation: Generation | None = None
        self.speaker: Speaker | None = None
        self.has_all_rows = self.ended = False

    @property
    def rows(self) -> list[int]:
        """Rows generated so far."""
        return [] if self.generation is None else list(self.generation.rows)


class RowWorker:
    """The thread of the language model.

    Args:
        model: The model.
        limits: Limits for clients.
        counts: Statistics to update.
        on_end: Called when a reply has ended, with the running reply, the reason, and a one-line error
            message.
        threads: Number of CPU threads for torch operations; None: unchanged.
    """

    def __init__(
        self,
        model: SpeechModel,
        limits: Limits,
        counts: Counts,
        on_end: Callable[[Running, Reason, str], None],
        threads: int | None = None,
    ) -> None:
        self._lm, self._limits, self._counts, self._on_end = model.lm, limits, counts, on_end
        self._device = model.lm.branches[0].head.weight.device
        self.pool = ContextPool(model.lm, limits.max_kept_bytes)
        self._threads = threads
        self._contexts: dict[Owner, Context] = {}
        self._owners: set[Owner] = set()
        self._running: list[Running] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="rows", daemon=True)
        self._thread.start()

    # --- from any thread ------------------------------------------------------------------------------------

    def join(self, owner: Owner) -> None:
        """Registers a new session."""
        with self._lock:
            self._owners.add(owner)

    def start(self, one: Running) -> None:
        """Starts to generate the rows of a reply."""
        with self._lock:
            self._running.append(one)
        self.wake()

    def remove(self, one: Running) -> None:
        """Stops generating rows of a reply."""
        with self._lock:
            if one in self._running:
                self._running.remove(one)
        self.wake()

    def wake(self) -> None:
        """Notifies the thread of a change: a reply was cancelled or read, a session was closed."""
        self._wake.set()

    @property
    def running(self) -> list[Running]:
        """Replies that have not ended."""
        with self._lock:
            return list(self._running)

    def is_paused(self, one: Running) -> bool:
        """Whether the client has too much unread audio."""
        return one.speaker is not None and one.speaker.ahead_sec > self._limits.max_unsent_sec

    def close(self) -> None:
        """Ends the thread; running replies must have been cancelled before."""
        self._closed = True
        self.wake()
        self._thread.join()

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with own_stream(self._device):
            while True:
                self._wake.clear()
                try:
                    worked = self._round()
                except Exception:  # an internal error: nobody must wait forever
                    _logger.exception("the thread of the language model failed")
                    worked = bool(self.running)
                    for one in self.running:
                        self._on_end(one, "failed", "internal error")
                if not worked:
                    if self._closed and not self.running:
                        break
                    self._wake.wait()
        self._contexts.clear()

    def _round(self) -> bool:
        """Computes one piece of a prompt and one row of each reply; returns False if there was no work."""
        worked = False
        for one in self.running:
            if one.reply.cancelled:
                self._on_end(one, "cancelled", "")
                worked = True
        going_on = [one for one in self.running if not one.has_all_rows]
        self._free(going_on)
        for one in going_on:
            if one.generation is None:
                self._guarded(one, self._begin)
        filling = [one for one in going_on if one.generation is not None and one.generation.rows_left]
        if filling:
            # The one that can start soonest; each session has only one reply, so the others' turn comes.
            self._guarded(min(filling, key=_rows_left), _advance)
        stepped = self._step([one for one in going_on if self._is_ready(one)])
        if filling:
            return True
        # A piece costs about as much as one row of all replies, even if it is short.
        ahead = self._look_ahead(going_on, PIECE_ROWS // 2 if stepped else 1)
        return worked or stepped or ahead

    def _is_ready(self, one: Running) -> bool:
        g = one.generation
        if g is None or g.failure is not None or one.ended or one.has_all_rows:
            return False
        return not g.rows_left and not self.is_paused(one)

    def _guarded(self, one: Running, work: Callable[[Running], None]) -> None:
        try:
            work(one)
        except Exception as failure:
            self._fail(one, failure)

    def _fail(self, one: Running, failure: Exception) -> None:
        one.has_all_rows = True
        self._on_end(one, "failed", one_line(failure))

    def _begin(self, one: Running) -> None:
        options, prompt, usage = one.reply.options, one.reply.prompt, one.usage
        context = self._context_for(one.owner, prompt)
        most = min(options.max_new_tokens, self._limits.max_context_rows - len(prompt))
        one.generation = Generation(
            self._lm, context, prompt, most, options.text, options.speech, one.seed
        )  # fmt: skip
        usage.cached_rows = one.generation.cached_rows
        usage.prefilled_rows = len(prompt) - usage.cached_rows
        if one.generation.ended:
            self._finish(one)

    def _context_for(self, owner: Owner, rows: list[int]) -> Context:
        """The session's context, or a better one from the pool if it has little in common with the rows."""
        own = self._contexts.pop(owner, None)
        if own is not None and 2 * own.common(rows) < len(own.rows):
            self.pool.give(own)
            own = None
        context = own or self.pool.take(rows, self._contexts.values(), owner.scope)
        self._contexts[owner] = context
        return context

    def _step(self, ready: list[Running]) -> bool:
        """Generates one row of each reply."""
        pairs = [(one, one.generation) for one in ready if one.generation is not None]
        if not pairs:
            return False
        step(self._lm, [g for _, g in pairs])
        for one, g in pairs:
            if g.failure is not None:
                self._fail(one, g.failure)
            else:
                self._guarded(one, self._take)
        return True

    def _take(self, one: Running) -> None:
        """Passes on the row that was just generated."""
        g, speaker = one.generation, one.speaker
        assert g is not None
        assert speaker is not None
        if one.usage.first_row_sec is None:
            one.usage.first_row_sec = time.monotonic() - one.began
            one.usage.prefill_sec = g.sec
        row = g.rows[-1]
        self._counts.rows["text" if row < self._lm.format.text_vocab_size else "speech"] += 1
        speaker.take(row)
        if g.ended:
            self._finish(one)

    def _finish(self, one: Running) -> None:
        one.has_all_rows = True
        reason: Reason = "stop" if one.generation and one.generation.ended == "stop" else "length"
        assert one.speaker is not None
        one.speaker.finish(lambda: self._on_end(one, reason, ""))

    def _free(self, going_on: list[Running]) -> None:
        """Moves the caches of closed sessions to the pool."""
        busy = {one.owner for one in going_on}
        with self._lock:
            closed = [owner for owner in self._owners if owner.closed and owner not in busy]
            self._owners.difference_update(closed)
        for owner in closed:
            if owner in self._contexts:
                self.pool.give(self._contexts.pop(owner))
            if owner.scope is owner:
                self.pool.end(owner)

    def _look_ahead(self, going_on: list[Running], least: int) -> bool:
        """Computes a piece of a user's current turn, if at least `least` rows of it are available."""
        busy = {one.owner for one in going_on}
        with self._lock:
            owners = [o for o in self._owners if o.ahead is not None and not o.closed and o not in busy]
        for owner in owners:
            rows = owner.ahead
            if rows is None:
                continue
            try:
                missing = self._missing_ahead(owner, rows)
                if missing >= least:
                    Prefill(self._lm, self._contexts[owner], rows).advance()
                    return True
            except Exception:  # the reply will compute it, or report the error
                _logger.exception("a turn could not be computed ahead")
                missing = 0
            if not missing and owner.ahead is rows:
                owner.ahead = None
        return False

    def _missing_ahead(self, owner: Owner, rows: list[int]) -> int:
        """Number of rows that can be computed in advance."""
        context = self._contexts.get(owner) or self._context_for(owner, rows)
        # Only if they continue the cached rows: a turn that is not yet in the conversation must not be lost.
        if context.common(rows) < len(context.rows):
            return 0
        return max(0, len(rows) - 1 - len(context.rows))


def one_line(failure: Exception) -> str:
    """The error as one line."""
    return str(failure).partition("\n")[0] or type(failure).__name__


def _rows_left(one: Running) -> int:
    return 0 if one.generation is None else one.generation.rows_left


def _advance(one: Running) -> None:
    if one.generation is not None:
        one.generation.advance()
