"""A validation before the first optimizer step, so that curves start at step 0."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loops.utilities import _reset_progress
from lightning.pytorch.utilities.seed import isolate_rng

from lit_moss.contracts import StoppingCallback
from lit_moss.trainer_access import callbacks_of


class FirstValidation(Callback):
    """Runs a complete validation at step 0; a resumed run does not repeat it.

    It is an ordinary validation: metrics are logged at step 0, and all validation hooks are called. The rest
    of the run is bit-identical to a run without it: random states, counters of Lightning's loops and
    checkpoints do not change. Callbacks that end a run early ignore it, since nothing has been trained yet.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in `on_train_start`: callbacks later in the list would not be ready yet.
        loop = trainer.fit_loop.epoch_loop.val_loop
        if trainer.global_step or loop.restarting or not trainer.enable_validation:
            return
        with _without_stopping(trainer), isolate_rng():
            trainer.validating = True  # as in Lightning's validations between steps
            loop.run()
            trainer.training = True
        _reset_progress(loop)  # as after Lightning's sanity check


@contextmanager
def _without_stopping(trainer: Trainer) -> Iterator[None]:
    callbacks = callbacks_of(trainer)
    every = list(callbacks)
    callbacks[:] = [c for c in every if not isinstance(c, EarlyStopping | StoppingCallback)]
    try:
        yield
    finally:
        callbacks[:] = every
