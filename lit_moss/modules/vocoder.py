"""Training of a vocoder: mels of recordings, or those that a decoder makes of their codes -> their waveforms.

loss = mel_weight * L1 of log-mels + stft_weight * multi-resolution STFT loss            (from the first step)
     + adversarial_weight * hinge + feature_weight * feature matching       (from step adversarial_from_step)

The discriminators learn in the same step and with the same optimizer, in groups of their own: both sides'
gradients are taken at the weights before the step, and neither reaches the other (see
`lit_moss.codec.discriminators.adversarial_losses`). So a step is one forward and one backward, skipped or
resumed as a whole, and `global_step` counts what it counts everywhere.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric

from lit_moss.audio import rates
from lit_moss.audio.features import decoder_mel
from lit_moss.audio.precision import check_weights
from lit_moss.codec.discriminators import DiscriminatorConfig, Discriminators, adversarial_losses
from lit_moss.codec.spectral_losses import stft_loss
from lit_moss.codec.trained_vocoder import MEL
from lit_moss.codec.vocoder_net import VocoderConfig, VocoderNet
from lit_moss.contracts import VocoderData, data_of, fingerprints_of, steps_done, waits_for_all_gradients
from lit_moss.data.batches import VocoderBatch
from lit_moss.errors import UserError
from lit_moss.modules.flow_decoder import DECIBELS
from lit_moss.modules.steps import StepModule
from lit_moss.optimizer_groups import decay_groups

HOP = rates.DECODER_HOP_SAMPLES
DISCRIMINATOR = "discriminator"


@dataclass
class Revocoded:
    """One validated clip, made again from its mel.

    Args:
        id: Name.
        truth_L: Its samples at 24 kHz.
        made_L: The vocoder's.
    """

    id: str
    truth_L: Tensor
    made_L: Tensor


class Vocoder(StepModule):
    """The vocoder in training.

    Args:
        net: Sizes; None is the small default.
        init_from: A vocoder to start from (run, checkpoint, folder; see `lit_moss.hub.open_vocoder`), of the
            same sizes; None starts at random.
        mel_weight: Weight of the L1 distance of log-mels.
        stft_weight: Weight of the multi-resolution STFT loss.
        adversarial_from_step: Step from which discriminators judge the waves, and learn; None never builds
            them.
        adversarial_weight: Weight of the discriminators' judgement; 1/45 of `mel_weight` is Vocos's.
        feature_weight: Weight of the distance of the discriminators' feature maps.
        discriminators: Their sizes; None is HiFi-GAN's and UnivNet's.
        lr: Base learning rate.
        discriminator_lr: Base learning rate of the discriminators; None is `lr`.
        weight_decay: AdamW's decay, of the network's matrices alone and of all of the discriminators.
        examples: Validated clips that are kept as sounds and pictures.
    """

    def __init__(
        self,
        net: VocoderConfig | None = None,
        init_from: str | None = None,
        mel_weight: float = 1.0,
        stft_weight: float = 1.0,
        adversarial_from_step: int | None = None,
        adversarial_weight: float = 0.02,
        feature_weight: float = 0.02,
        discriminators: DiscriminatorConfig | None = None,
        lr: float = 1e-3,
        discriminator_lr: float | None = None,
        weight_decay: float = 0.01,
        examples: int = 4,
    ) -> None:
        super().__init__()
        weights = (mel_weight, stft_weight, adversarial_weight, feature_weight)
        if min(weights) < 0 or not mel_weight + stft_weight > 0:
            raise UserError(
                f"model.mel_weight, stft_weight, adversarial_weight and feature_weight are {weights}, "
                "expected 0 or more, and one of the first two above 0"
            )
        first = adversarial_from_step
        if first is not None and first < 0:
            raise UserError(f"model.adversarial_from_step is {first}, expected 0 or more, or null")
        if discriminators is not None and first is None:
            raise UserError(
                "model.discriminators is given and model.adversarial_from_step null: give the step from "
                "which they judge"
            )
        self.net = VocoderNet(net)
        if init_from is not None:
            self._start_from(init_from)
        self.mel_weight, self.stft_weight, self.adversarial_weight, self.feature_weight = weights
        self.adversarial_from_step = first
        self.discriminators = Discriminators(discriminators) if first is not None else None
        self.lr, self.weight_decay = lr, weight_decay
        self.discriminator_lr = lr if discriminator_lr is None else discriminator_lr
        self.example_count = examples
        self.examples: list[Revocoded] = []
        self.val_loss, self.val_stft, self.val_distance = MeanMetric(), MeanMetric(), MeanMetric()

    # --- set-up ---------------------------------------------------------------------------------------------

    def _start_from(self, name: str) -> None:
        from lit_moss.codec.trained_vocoder import TrainedVocoder
        from lit_moss.hub import open_vocoder

        source = open_vocoder(name)
        if not isinstance(source, TrainedVocoder):
            raise UserError(
                f"model.init_from {name} is a {type(source).__name__}, expected a vocoder trained here"
            )
        if source.net.config != self.net.config:
            raise UserError(
                f"model.init_from {name} has {source.net.config}, model.net is {self.net.config}: set them "
                "equal"
            )
        self.net.load_state_dict(source.net.state_dict())
        rank_zero_info(f"vocoder started from {name}")

    def setup(self, stage: str) -> None:
        check_weights(self.trainer.precision)
        data_of(self.trainer, VocoderData)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained_on = {"steps": self.global_step, **fingerprints_of(self.trainer)}
        checkpoint["vocoder"] = {"net": asdict(self.net.config), "mel": MEL, "trained_on": trained_on}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.net.parameters() if p.requires_grad]
        groups = decay_groups("vocoder", trained, self.lr, self.weight_decay)
        if self.discriminators is not None:
            params, rate = list(self.discriminators.parameters()), self.discriminator_lr
            groups.append({"name": DISCRIMINATOR, "params": params, "lr": rate, "base_lr": rate,
                           "weight_decay": self.weight_decay})  # fmt: skip
        return self.adamw(groups, betas=(0.8, 0.99))

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips vocoder and discriminators by a norm each: neither makes the other's steps smaller."""
        sides: tuple[list[Any], list[Any]] = ([], [])
        for group in optimizer.param_groups:
            side = sides[group["name"] == DISCRIMINATOR]
            side += [p for p in group["params"] if p.grad is not None]
        if not sides[1] or (gradient_clip_val or 0) <= 0 or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for params in sides:
            torch.nn.utils.clip_grad_norm_(params, float(gradient_clip_val or 0))

    # --- training -------------------------------------------------------------------------------------------

    def training_step(self, batch: VocoderBatch, batch_idx: int) -> Tensor:
        self.count_targets(len(batch))
        if not len(batch):  # every file of it was unreadable: this rank adds zeros to the gradients
            return self._zero(self)
        made_BL = self.net(batch.mel_BMT)
        mel, stft = spectral_distances(made_BL, batch.wave_BL)
        loss = self.mel_weight * mel + self.stft_weight * stft
        # Lightning takes a metric named `step` as the x axis: number 1 is the state after the first step.
        self.log("step", self.on_device(self.global_step + 1), batch_size=len(batch))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        self.log("train/mel", mel.detach(), batch_size=len(batch))
        self.log("train/stft", stft.detach(), batch_size=len(batch))
        if self.discriminators is None:
            return loss
        if self.global_step < (self.adversarial_from_step or 0):
            # Without gradients AdamW changes nothing.
            waits = waits_for_all_gradients(self.trainer)
            return loss + self._zero(self.discriminators) if waits else loss
        judged = adversarial_losses(self.discriminators, made_BL, batch.wave_BL)
        self.log("train/adversarial", judged.adversarial.detach(), batch_size=len(batch))
        self.log("train/features", judged.features.detach(), batch_size=len(batch))
        self.log("train/discriminator", judged.discriminator.detach(), batch_size=len(batch))
        loss = loss + self.adversarial_weight * judged.adversarial + self.feature_weight * judged.features
        return loss + judged.discriminator

    def _zero(self, module: torch.nn.Module) -> Tensor:
        """A loss of 0 that gives every parameter a gradient of 0."""
        return sum((p.sum() * 0.0 for p in module.parameters()), torch.zeros((), device=self.device))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.discriminators is not None and self.global_step < (self.adversarial_from_step or 0):
            for p in (
                self.discriminators.parameters()
            ):  # zeros, where a reducer waits: AdamW would count and decay
                p.grad = None

    # --- validation -----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.examples = []

    def validation_step(self, batch: VocoderBatch, batch_idx: int) -> None:
        for clip in self.revocoded(batch):
            mel, stft = spectral_distances(clip.made_L[None], clip.truth_L[None])
            seconds = len(clip.truth_L) / rates.DECODER_RATE_HZ
            self.val_loss.update(self.mel_weight * mel + self.stft_weight * stft, seconds)
            self.val_stft.update(stft, seconds)
            self.val_distance.update(DECIBELS * mel, seconds)
            if len(self.examples) < self.example_count:
                self.examples.append(Revocoded(clip.id, clip.truth_L.cpu(), clip.made_L.cpu()))

    def revocoded(self, batch: VocoderBatch) -> list[Revocoded]:
        """Each clip of a batch, made again from its mel without the padding."""
        clips = []
        for name, frames, mel_MT, truth_L in zip(
            batch.ids, batch.frames, batch.mel_BMT, batch.wave_BL, strict=True
        ):
            made_L = self.net(mel_MT[None, :, :frames])[0]
            clips.append(Revocoded(name, truth_L[: HOP * frames], made_L))
        return clips

    def on_validation_epoch_end(self) -> None:
        stage = "test" if self.trainer.testing else "val"
        self.log("step", float(steps_done(self.trainer)))
        self.log(f"{stage}/loss", self.val_loss, prog_bar=True)
        self.log(f"{stage}/stft", self.val_stft)
        self.log(f"{stage}/mel_distance_db", self.val_distance)

    test_step, on_test_epoch_start, on_test_epoch_end = (
        validation_step,
        on_validation_epoch_start,
        on_validation_epoch_end,
    )

    def predict_step(self, batch: VocoderBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Distance of each clip's mel, of its vocoded wave, from the true one."""
        distances = []
        for clip in self.revocoded(batch):
            mel, _ = spectral_distances(clip.made_L[None], clip.truth_L[None])
            distances.append({"id": clip.id, "mel_distance_db": float(DECIBELS * mel)})
        return distances


def spectral_distances(made_BL: Tensor, truth_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute difference of log-mels, and the multi-resolution STFT loss, in float32: () each."""
    with torch.autocast(made_BL.device.type, enabled=False):
        mel = (decoder_mel(made_BL) - decoder_mel(truth_BL)).abs().mean()
        return mel, stft_loss(made_BL, truth_BL)
