"""Decides when the training loop is notified of SIGTERM and Ctrl-C."""

import signal
import sys
import threading
from types import FrameType

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, raised after the step in which it arrived.

    Args:
        is_saved: Whether the state after that step was saved.
    """

    def __init__(self, is_saved: bool) -> None:
        super().__init__()
        self.is_saved = is_saved


class StepEndSignals(_SignalConnector):
    """Notifies the loops of SIGTERM only between two optimizer steps, and treats Ctrl-C like SIGTERM.

    Lightning would stop between two micro-batches, where the state cannot be saved, because it does not
    include the accumulated gradients. With 19 micro-batches per step, this would happen in 18 of 19 cases.
    """

    _received: bool
    was_interrupted = False

    @property
    def received_sigterm(self) -> bool:
        return self._received and not self.trainer.fit_loop._should_accumulate()

    @received_sigterm.setter
    def received_sigterm(self, value: bool) -> None:
        self._received = value

    def register_signal_handlers(self) -> None:
        super().register_signal_handlers()
        # Only if Ctrl-C would raise KeyboardInterrupt: not in the background, and not under another handler.
        # With several processes, each would get Ctrl-C in a different step, and they would wait for each
        # other.
        takes = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        alone = self.trainer.world_size == 1 and threading.current_thread() is threading.main_thread()
        if takes and alone and self.trainer.state.fn == "fit":
            signal.signal(signal.SIGINT, self._on_interrupt)

    def teardown(self) -> None:
        if signal.getsignal(signal.SIGINT) == self._on_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        super().teardown()

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        """Stops after this step and saves the state; a second Ctrl-C stops immediately."""
        if self._received:
            signal.default_int_handler(number, frame)
        print("\nstopping after this step, Ctrl-C again stops at once", file=sys.stderr, flush=True)
        self.was_interrupted = self._received = True


def wait_for_step_ends(trainer: Trainer) -> None:
    """Makes a trainer stop on SIGTERM after the current optimizer step, not within it."""
    trainer._signal_connector = StepEndSignals(trainer)


def was_interrupted(trainer: Trainer) -> bool:
    """Whether a trainer stopped because of Ctrl-C."""
    connector = trainer._signal_connector
    return isinstance(connector, StepEndSignals) and connector.was_interrupted
