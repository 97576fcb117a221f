"""Training speed of a language model: rows per second by modality, model FLOPs, utilisation, memory."""

import resource
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_moss.data.batches import TokenBatch
from lit_moss.errors import UserError
from lit_moss.llm.flops import step_flops

# Dense bf16 peak of one device in TFLOP/s, from the manufacturers' data sheets.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}


class Throughput(Callback):
    """Logs `train/rows_per_sec` (also text, speech), `train/tflops`, `train/mfu`, `train/memory_gib`.

    Model FLOPs count 4 per weight and row for frozen matrices, 6 for trained ones, and the pairs that
    attention actually computes (see `lit_moss.llm.flops`). Validation time and filler rows are excluded. Rows
    are those of all ranks; FLOPs and utilisation are per device.

    Args:
        every_n_steps: Number of micro-batches over which to average.
        peak_tflops: Peak of one device in TFLOP/s, for the utilisation. None: that of the data sheet for
            known GPUs; on other devices no utilisation is logged.
    """

    def __init__(self, every_n_steps: int = 10, peak_tflops: float | None = None) -> None:
        if every_n_steps < 1:
            raise UserError(f"Throughput got every_n_steps {every_n_steps}, expected 1 or more")
        self.every_n_steps, self.peak_tflops = every_n_steps, peak_tflops
        self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.peak_tflops is None and torch.cuda.is_available():
            name = torch.cuda.get_device_name()
            self.peak_tflops = next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
        self._reset()
        self._paused = self._since

    def _reset(self) -> None:
        self._since, self._text, self._speech, self._flops, self._batches = time.monotonic(), 0, 0, 0, 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":  # queued steps belong to the training
            torch.cuda.synchronize(pl_module.device)
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not reset: with validations more often than `every_n_steps`, nothing would ever be logged.
        self._since += time.monotonic() - self._paused

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        lm: Any = pl_module.lm
        speech = batch.speech_rows
        self._speech += speech
        self._text += batch.real_rows - speech
        lengths = batch.lengths
        if not getattr(pl_module, "reset_attention", True):
            lengths = (batch.document_ids_BL >= 0).sum(dim=1).tolist()
        layers = getattr(pl_module, "layers_run", None)
        self._flops += step_flops(lm, lengths, *_targets(batch), layers)
        self._batches += 1
        if self._batches < self.every_n_steps:
            return
        seconds, ranks = time.monotonic() - self._since, trainer.world_size
        found = {
            "train/rows_per_sec": (self._text + self._speech) * ranks / seconds,
            "train/text_rows_per_sec": self._text * ranks / seconds,
            "train/speech_rows_per_sec": self._speech * ranks / seconds,
            "train/tflops": self._flops / seconds / 1e12,
            "train/memory_gib": memory_gib(),
        }
        if self.peak_tflops:
            found["train/mfu"] = found["train/tflops"] / self.peak_tflops
        pl_module.log_dict(found, rank_zero_only=True)
        self._reset()


def _targets(batch: TokenBatch) -> tuple[int, int]:
    """Number of targets of the text head and of the speech head."""
    text, speech = batch.text_targets, batch.speech_targets
    if text is None or speech is None:  # counted here, which waits for the device
        targets = int(batch.loss_mask_BL.sum())
        speech = targets * batch.speech_rows // max(1, batch.real_rows)
        text = targets - speech
    return text, speech


def memory_gib() -> float:
    """Peak memory of this process, in GiB: of the GPU if there is one, otherwise resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
