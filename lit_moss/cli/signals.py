"""When the training loop learns of SIGTERM."""

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


class StepEndSignals(_SignalConnector):
    """Shows SIGTERM to the loops between two optimizer steps only.

    Lightning would stop between two micro-batches, where the state cannot be saved: the gradients that have
    been accumulated are not part of it. With 19 micro-batches a step that is 18 times in 19.
    """

    _received: bool

    @property
    def received_sigterm(self) -> bool:
        return self._received and not self.trainer.fit_loop._should_accumulate()

    @received_sigterm.setter
    def received_sigterm(self, value: bool) -> None:
        self._received = value


def wait_for_step_ends(trainer: Trainer) -> None:
    """Makes a trainer stop on SIGTERM after the optimizer step that it is in, not within it."""
    trainer._signal_connector = StepEndSignals(trainer)
