"""The codebook of a tokenizer in training: k-means initialisation, moving averages, restarts of dead codes.

The codebook is updated without gradients (`lit_moss.codec.quantizer`), once per optimizer step, from the
frames of all ranks and accumulated micro-batches. Shapes: B items, N codes, S frames, D width, K codebook
entries.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_moss.codec import quantizer
from lit_moss.codec.encoder import CausalEncoder
from lit_moss.contracts import SpeechData
from lit_moss.data.batches import SpeechBatch
from lit_moss.errors import UserError
from lit_moss.modules.steps import HostCopy, StepModule
from lit_moss.trainer_access import data_of


@dataclass(frozen=True)
class CodebookSchedule:
    """When the codebook is initialised and its dead codes are restarted.

    Args:
        start_step: Optimizer steps without quantization before the k-means initialisation.
        kmeans_batches: Number of training batches (of every rank) that k-means uses.
        restart_share: A code is dead if its average count is below restart_share * decay^interval, that is,
            this multiple of the count that one update leaves after a restart interval.
    """

    start_step: int
    kmeans_batches: int
    restart_share: float

    def __post_init__(self) -> None:
        if self.start_step < 0 or self.kmeans_batches < 1:
            raise UserError(
                f"model.quantize_from_step is {self.start_step} and kmeans_batches {self.kmeans_batches}, "
                "expected 0 steps or more, and 1 batch or more"
            )


class CodebookModule(StepModule, ABC):
    """Base of the speech tokenizer's LightningModule: an encoder whose codebook is updated in training.

    Subclasses call `keep_frames` in each training step and implement `speech_frames`.

    Args:
        encoder: The network.
        schedule: When the codebook is initialised and its dead codes are restarted.
        ready: Whether the codebook is already initialised.
    """

    updates: Tensor
    codebook_ready: Tensor
    train_use_K: Tensor

    def __init__(self, encoder: CausalEncoder, schedule: CodebookSchedule, ready: bool) -> None:
        super().__init__()
        self.encoder, self.codebook_schedule = encoder, schedule
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("codebook_ready", torch.tensor(ready))
        size = encoder.config.quantize_vocab_size
        self.register_buffer("train_use_K", torch.zeros(size, dtype=torch.long), persistent=True)
        # Host copies of `codebook_ready` and `updates`, to avoid waiting for the device at each step.
        self._ready, self._updates = HostCopy(), HostCopy()
        self._frames: list[tuple[Tensor, Tensor]] = []  # (S, D) and their codes, since the last step

    @abstractmethod
    def speech_frames(self, batch: SpeechBatch) -> Tensor:
        """Pooled frames of a batch, without padding: (S, D), float32."""

    @property
    def quantizing(self) -> bool:
        """Whether the codebook is initialised; depends only on the state of the run."""
        return bool(self._ready.get(self.codebook_ready))

    @property
    def is_usable(self) -> bool:
        """False before the codebook is initialised: error rates are lower without codes, so they are not
        comparable.
        compare."""
        return self.quantizing

    def keep_frames(self, x_SD: Tensor, codes_S: Tensor) -> None:
        """Stores the frames of a micro-batch and their codes for the next update."""
        self._frames.append((x_SD.detach(), codes_S))

    # --- initialisation -------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: SpeechBatch, batch_idx: int) -> None:
        if not self.quantizing and self.global_step >= self.codebook_schedule.start_step:
            self._start_codebook()

    @torch.no_grad()
    def _start_codebook(self) -> None:
        """Runs k-means on unaugmented frames of the next batches; depends only on the order of the data."""
        frames = self._frames_of_next_batches()
        count, batches = quantizer.sum_over_ranks(sum(map(len, frames)), len(frames))
        if not batches:
            raise UserError("none of the audio for the codebook's k-means start could be read")
        # A rank without frames must also take part in the collective operations.
        x_SD = torch.cat([self.encoder.codebook.weight.new_zeros(0, self.encoder.config.d_model), *frames])
        centres_KD, count_K = quantizer.kmeans(x_SD, len(self.encoder.codebook.weight))
        # Initial counts: the values that the averages would reach with steps of this size.
        share_K = count_K / count_K.sum() * count / batches
        share_K = (share_K * (self.trainer.world_size * self.trainer.accumulate_grad_batches)).clamp(min=1e-2)
        self.encoder.codebook.weight.copy_(centres_KD)
        self.encoder.ema_count.copy_(share_K)
        self.encoder.ema_weight.copy_(centres_KD * share_K[:, None])
        self.codebook_ready.fill_(True)
        self._ready.set(self.codebook_ready, True)
        rank_zero_info(
            f"step {self.global_step}: codebook of {len(centres_KD)} started by k-means on {count:.0f} frames"
        )

    def _frames_of_next_batches(self) -> list[Tensor]:
        frames = []
        self.encoder.eval()
        for batch in data_of(self.trainer, SpeechData).probe_loader(self.codebook_schedule.kmeans_batches):
            batch = self.trainer.strategy.batch_to_device(batch)
            if len(batch):
                with self.trainer.precision_plugin.forward_context():
                    frames.append(self.speech_frames(batch))
        self.encoder.train()
        return frames

    # --- updates --------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Updates the codebook together with the parameters; a skipped step skips both."""
        frames, self._frames = self._frames, []
        if self.quantizing and self.skip_step is not True:
            empty = self.encoder.codebook.weight.new_zeros(0, self.encoder.config.d_model)
            # A rank that could read none of its files takes part with zeros, because the other ranks wait for
            # it.
            x_SD = torch.cat([empty, *(x for x, _ in frames)])
            codes_S = torch.cat([x_SD.new_zeros(0, dtype=torch.long), *(codes for _, codes in frames)])
            self._update_codebook(x_SD, codes_S)

    def _update_codebook(self, x_SD: Tensor, codes_S: Tensor) -> None:
        encoder, skip = self.encoder, self.skip_step if isinstance(self.skip_step, Tensor) else None
        state = (encoder.codebook.weight, encoder.ema_count, encoder.ema_weight)
        decay, every = encoder.config.quantize_ema_decay, encoder.config.quantize_restart_interval
        # If the host does not know which steps were skipped, it counts them too, until a restart may be due.
        updates = self._updates.get(self.updates) + 1
        use_K = quantizer.ema_update(*state, x_SD, codes_S, decay, skip)
        self.updates += 1 if skip is None else (~skip).long()
        self.train_use_K += use_K if skip is None else use_K * ~skip
        due = updates % every == 0
        taken = int(self.updates) if due else updates
        self._updates.set(self.updates, taken)
        if due and taken == updates:
            threshold = self.codebook_schedule.restart_share * decay**every
            restarted = quantizer.restart_dead(*state, x_SD, threshold=threshold)
            if self.logger is not None:
                # Not logged with `self.log`, which would repeat the value at every step until the next
                # restart.
                used = float((self.train_use_K > 0).float().mean())
                values = {"train/codes_restarted": float(restarted), "train/codebook_used": used}
                self.logger.log_metrics(values, step=self.global_step + 1)
            self.train_use_K.zero_()
