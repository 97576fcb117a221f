"""The thread that encodes and decodes audio, and the user turns that it encodes.

Every turn and every reply has its own queue of short tasks, and one task of each queue runs in turn: a
session with much audio to decode delays the first audio of another by one task at most.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, nullcontext, suppress

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.features import Resampler, resample
from lit_moss.codec import SpeechTokenizer
from lit_moss.serve.settings import SessionLimit

_logger = logging.getLogger(__name__)

# Length of audio that one task encodes: live, where it arrives in small pieces, and for a complete recording.
LIVE_SEC = 0.4
RECORDING_SEC = 2.0
# Blocks of the live resampler: 80 ms, one code.
_BLOCKS_PER_SEC = 12.5


def own_stream(device: torch.device) -> AbstractContextManager[object]:
    """A CUDA stream for a thread, so that rows and audio do not wait for each other; no-op on the CPU."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()


class SoundWorker:
    """A thread that runs tasks, one of each owner in turn.

    Args:
        device: Device of the codec.
        threads: Number of CPU threads for torch operations; None: unchanged.
    """

    def __init__(self, device: torch.device, threads: int | None = None) -> None:
        self._queues: OrderedDict[object, deque[Callable[[], None]]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._device, self._threads = device, threads
        self._thread = threading.Thread(target=self._run, name="sounds", daemon=True)
        self._thread.start()

    def submit(self, owner: object, task: Callable[[], None]) -> None:
        """Queues a task after the earlier tasks of its owner.

        Raises:
            SessionLimit: after `close`.
        """
        with self._changed:
            if self._closed:
                raise SessionLimit("the server is closing")
            self._queues.setdefault(owner, deque()).append(task)
            self._changed.notify()

    def drop(self, owner: object) -> None:
        """Discards the owner's tasks that have not started."""
        with self._changed:
            self._queues.pop(owner, None)

    @property
    def waiting(self) -> int:
        """Number of tasks that have not started."""
        with self._changed:
            return sum(map(len, self._queues.values()))

    def close(self) -> None:
        """Ends the thread after the current task; others are discarded, their callers get an error."""
        with self._changed:
            self._closed = True
            listeners = [owner for owner in self._queues if isinstance(owner, Listener)]
            self._queues.clear()
            self._changed.notify()
        self._thread.join()
        for listener in listeners:
            listener.fail(SessionLimit("the server is closing"))

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with own_stream(self._device):
            while (task := self._next()) is not None:
                try:
                    task()
                except Exception:
                    _logger.exception("a task of the sound worker failed")
                task = None  # releases its references while the thread waits

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._queues:
                if self._closed:
                    return None
                self._changed.wait()
            owner, queue = next(iter(self._queues.items()))
            task = queue.popleft()
            if queue:
                self._queues.move_to_end(owner)
            else:
                del self._queues[owner]
            return task


class Listener:
    """Encodes speech, live if the tokenizer supports it; codes equal those of `SpeechTokenizer.encode`.

    `push` and `finish` may be called from any single thread; the worker computes the tensors.

    Args:
        worker: Worker that encodes.
        tokenizer: Speech tokenizer; None: there is none, call `fail`.
        rate_hz: Sample rate in Hz.
        on_codes: Called by the worker with all codes so far, whenever there are new ones.
    """

    def __init__(
        self,
        worker: SoundWorker,
        tokenizer: SpeechTokenizer | None,
        rate_hz: int,
        on_codes: Callable[[list[int]], None] | None = None,
    ) -> None:
        self._worker, self._tokenizer, self._rate_hz = worker, tokenizer, rate_hz
        self._on_codes = on_codes
        self._live: bool | None = None  # known after the first push
        self._pieces: list[Tensor] = []  # pushed, not yet passed to the worker
        self._held = 0
        self._codes: list[int] = []
        self._future: Future[list[int]] = Future()

    def push(self, samples_T: Tensor) -> None:
        """Pushes samples; returns immediately. After an error they are discarded."""
        if self._tokenizer is None or self._future.done():
            return
        if self._live is None:
            live = self._tokenizer.config.log_mel == "causal"
            self._live = live and len(samples_T) < RECORDING_SEC * self._rate_hz
            if self._live:
                self._worker.submit(self, lambda: self._try(self._open))
        self._pieces.append(samples_T)
        self._held += len(samples_T)
        if self._live and self._held >= LIVE_SEC * self._rate_hz:
            self._give()

    def _give(self) -> None:
        wave_T = torch.cat(self._pieces)
        self._pieces, self._held = [], 0
        for piece_T in wave_T.split(round(RECORDING_SEC * self._rate_hz)):
            self._worker.submit(self, lambda piece_T=piece_T: self._try(lambda: self._encode(piece_T)))

    def finish(self) -> "Future[list[int]]":
        """Ends the turn; returns all its codes."""
        if self._future.done():
            return self._future
        if self._live:
            if self._pieces:
                self._give()
            self._worker.submit(self, lambda: self._try(self._flush))
        else:
            wave_T = torch.cat(self._pieces) if self._pieces else torch.zeros(0)
            self._pieces = []
            self._worker.submit(self, lambda: self._try(lambda: self._split(wave_T)))
        return self._future

    def drop(self) -> None:
        """Ends the turn and discards its codes."""
        self._worker.drop(self)
        self._future.cancel()

    def fail(self, failure: Exception) -> None:
        """Ends the turn with an error, unless it has already ended."""
        with suppress(InvalidStateError):  # `drop` may be called from another thread meanwhile
            self._future.set_exception(failure)

    # --- in the worker --------------------------------------------------------------------------------------

    def _try(self, task: Callable[[], None]) -> None:
        if not self._future.done():
            try:
                task()
            except Exception as failure:
                self.fail(failure)

    def _open(self) -> None:
        block = round(self._rate_hz / _BLOCKS_PER_SEC)
        self._resampler = Resampler(self._rate_hz, rates.TOKENIZER_RATE_HZ, block)
        assert self._tokenizer is not None
        self._stream = self._tokenizer.stream()

    def _encode(self, samples_T: Tensor) -> None:
        self._add(self._stream.push(self._resampler.push(samples_T)))

    def _flush(self) -> None:
        self._add(torch.cat([self._stream.push(self._resampler.flush()), self._stream.flush()]))
        self._end()

    def _split(self, wave_T: Tensor) -> None:
        """Splits a recording: one task per 30 s segment of the tokenizer, since segments are independent."""
        assert self._tokenizer is not None
        wave_T = resample(wave_T, self._rate_hz, rates.TOKENIZER_RATE_HZ)
        limit = rates.segment_samples(self._tokenizer.config.max_source_positions)
        for segment_T in wave_T.split(limit) if len(wave_T) else ():
            self._worker.submit(self, lambda segment_T=segment_T: self._try(lambda: self._whole(segment_T)))
        self._worker.submit(self, lambda: self._try(self._end))

    def _whole(self, segment_T: Tensor) -> None:
        assert self._tokenizer is not None
        codes = self._tokenizer.encode(segment_T, rates.TOKENIZER_RATE_HZ)
        self._add(codes)

    def _end(self) -> None:
        with suppress(InvalidStateError):
            self._future.set_result(self._codes)

    def _add(self, codes_N: Tensor) -> None:
        if len(codes_N):
            self._codes += codes_N.tolist()
            if self._on_codes is not None:
                self._on_codes(list(self._codes))
