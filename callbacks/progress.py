"""Progress of a run: step, loss, validation, audio seconds per second, time left."""

import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lit_moss.contracts import Batch
from lit_moss.trainer_access import steps_done


class Progress(ProgressBar):
    """A progress bar on a terminal; otherwise a line every `every_n_sec` seconds, so that logs stay readable.

    Also logs `train/audio_sec_per_sec`: seconds of audio on all ranks per second of wall time, excluding
    validation.

    Args:
        every_n_sec: Seconds between lines if the output is not a terminal.
    """

    def __init__(self, every_n_sec: float = 10.0) -> None:
        super().__init__()
        self.every_n_sec = every_n_sec
        self._enabled = True
        self._bar: tqdm | None = None
        self._audio_sec = self._train_sec = 0.0
        self._since: float | None = None  # None until training starts: a separate validation is not timed

    def disable(self) -> None:
        """Called by Lightning on all ranks except the first."""
        self._enabled = False

    def enable(self) -> None:
        """Counterpart of `disable`."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_step = trainer.global_step
        self._audio_sec = self._train_sec = 0.0
        self._since = self._last_line = time.monotonic()
        if self._enabled and sys.stderr.isatty():
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._since is not None:
            self._train_sec += time.monotonic() - self._since

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()
        if self._enabled and not trainer.sanity_checking:
            shown = {
                k.removeprefix("val/"): f"{float(v):.4g}"
                for k, v in trainer.callback_metrics.items()
                if k.startswith(("val/", "heldout/"))
            }
            text = f"validation at step {steps_done(trainer)}: " + ", ".join(
                f"{k} {v}" for k, v in shown.items()
            )
            tqdm.write(text, file=sys.stderr) if self._bar is not None else print(
                text, file=sys.stderr, flush=True
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, Batch):
            self._audio_sec += batch.audio_sec * trainer.world_size
        assert self._since is not None  # set at the start of training
        seconds = self._train_sec + time.monotonic() - self._since
        speed = self._audio_sec / max(seconds, 1e-9)
        # Created on the device: `log` of a float would copy it there and wait.
        pl_module.log(
            "train/audio_sec_per_sec", torch.full((), speed, device=pl_module.device), rank_zero_only=True
        )
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
            if trainer._logger_connector.should_update_logs:
                self._bar.set_postfix(self._shown(trainer, pl_module, speed), refresh=False)
        elif (
            time.monotonic() - self._last_line > self.every_n_sec or trainer.global_step == trainer.max_steps
        ):
            self._last_line = time.monotonic()
            done = trainer.global_step - self._start_step
            left_sec = seconds / max(done, 1) * max(0, trainer.max_steps - trainer.global_step)
            parts = ", ".join(f"{k} {v}" for k, v in self._shown(trainer, pl_module, speed).items())
            print(f"step {trainer.global_step}/{trainer.max_steps}: {parts}, {left_sec / 60:.1f} min left",
                  file=sys.stderr, flush=True)  # fmt: skip

    def _shown(self, trainer: Trainer, pl_module: LightningModule, speed: float) -> dict[str, Any]:
        """Metrics of the bar; reading them waits for the device, so they are not read at every step."""
        shown = {
            k.removeprefix("train/"): f"{v:.4g}" if isinstance(v, float) else v
            for k, v in self.get_metrics(trainer, pl_module).items()
            if k != "v_num"
        }
        return shown | {"audio s/s": f"{speed:.1f}"}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
