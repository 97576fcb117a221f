"""Training of the flow-matching decoder (arXiv:2510.00499, section 2.2): codes of a frozen tokenizer to mels.

loss = squared error of the velocity, or of the predicted mel (`lit_moss.codec.flow_training`)
     + prior_weight * squared error of the encoder's output against the mel.

With `normalise: band` all losses are computed on normalised mels; `mel_distance_db` is not.
"""

import random
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lit_moss.audio import rates
from lit_moss.audio.precision import check_weights
from lit_moss.codec.flow import Flow
from lit_moss.codec.flow_config import BAND_MEAN, FlowConfig
from lit_moss.codec.flow_network import Prompt
from lit_moss.codec.flow_training import FlowBatch, draw, prior_loss, velocities
from lit_moss.codec.state_dicts import load_fitting
from lit_moss.contracts import DecoderData
from lit_moss.data.batches import DecoderBatch
from lit_moss.errors import UserError
from lit_moss.hub.codec import flow_weights
from lit_moss.modules.steps import StepModule
from lit_moss.optimizer_groups import decay_groups
from lit_moss.trainer_access import data_of, steps_done, waits_for_all_gradients

# 20 log10(e): converts natural logarithms of magnitudes to decibels.
DECIBELS = 8.685889638065037
TIME_BINS = 4


@dataclass
class Resynthesis:
    """A validated clip, resynthesised from its codes.

    Args:
        id: Name of the clip.
        truth_MT: Mel of the recording (M, T).
        made_MT: Mel that the decoder generated (M, T).
    """

    id: str
    truth_MT: Tensor
    made_MT: Tensor


class MeanByTime(Metric):
    """Mean loss in each quarter of t, over all ranks.

    Uses a single collective, whichever quarters a rank has seen."""

    sums: Tensor
    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("sums", "weights"):
            self.add_state(name, torch.zeros(TIME_BINS), dist_reduce_fx="sum")

    def update(self, t_B: Tensor, loss_B: Tensor, weight_B: Tensor) -> None:
        """Adds losses (B,) at times t (B,) in [0, 1], with weights (B,)."""
        place_B = (t_B * TIME_BINS).long().clamp(max=TIME_BINS - 1)
        self.sums.index_add_(0, place_B, (loss_B * weight_B).float())
        self.weights.index_add_(0, place_B, weight_B)

    def compute(self) -> Tensor:
        return self.sums / self.weights


class FlowDecoder(StepModule):
    """Trains the flow-matching decoder.

    Args:
        flow: Sizes. None: the official sizes. With `steps: 0` only the encoder is trained, by the prior loss.
        init_from: Weights to start from: a run or checkpoint of a decoder, a codec's folder, or a `flow.pt`
            of the released codec or of CosyVoice 2; tensors of another shape are skipped and reported. None:
            random weights.
        start_from_data: Initialise the code embeddings from the tokenizer's codebook, so that codes that
            sound alike start with similar embeddings, and the velocity's output bias from the mean mel: mels
            are natural logarithms around -6, and Adam moves a bias by about its learning rate per step.
            Ignored with `init_from`.
        prior_weight: Weight of the squared distance between the encoder's output and the mel, the prior loss
            of Grad-TTS (arXiv:2105.06337) and Matcha-TTS. With it the encoder also learns the mel by
            regression, not only through the noise of the flow. The released recipe has 0.
        prior_steps: Number of initial steps that train the encoder alone by the prior loss, at a fraction of
            a full step's cost. Useful when sampling starts near the encoder's output and the words depend on
            it.
        max_mel_weight: With `predict: mel`, maximum of the weight min(1 / (1 - t)^2, max_mel_weight) of the
            mel's squared error. 1 is the error of the mel itself; 400 is the error of the velocity, clipped
            at t = 0.95.
        lr: Base learning rate.
        weight_decay: AdamW's weight decay, applied to matrices only.
        streaming_share: Fraction of batches with chunk-causal masks. The released recipe has 1; 0.5 also
            trains for decoding without streaming.
        max_prompt_share: Maximum length of the voice prompt as a fraction of the item; 0.3 in the released
            recipe.
        examples: Number of validated clips that are resynthesised from their codes at each validation.
    """

    def __init__(
        self,
        flow: FlowConfig | None = None,
        init_from: str | None = None,
        start_from_data: bool = True,
        prior_weight: float = 0.0,
        prior_steps: int = 0,
        max_mel_weight: float = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        streaming_share: float = 0.5,
        max_prompt_share: float = 0.3,
        examples: int = 4,
    ) -> None:
        super().__init__()
        if not 0.0 <= streaming_share <= 1.0 or not 0.0 <= max_prompt_share < 1.0:
            raise UserError(
                f"model.streaming_share is {streaming_share} and model.max_prompt_share {max_prompt_share}, "
                "expected shares from 0 to 1"
            )
        self.flow = Flow(flow or FlowConfig())
        config = self.flow.config
        if not prior_weight and (config.start or not config.steps):
            given = f"start is {config.start}" if config.start else "steps is 0"
            raise UserError(
                f"model.flow.{given} and model.prior_weight 0: where sampling starts near the encoder's "
                "output, or ends at it, that has to learn the mel; give a weight, for example 1.0"
            )
        if prior_steps < 0 or (prior_steps and not prior_weight):
            raise UserError(
                f"model.prior_steps is {prior_steps} and model.prior_weight {prior_weight}: expected 0 or "
                "more steps, and a weight above 0 where there are any"
            )
        if not max_mel_weight >= 1.0 or (max_mel_weight > 1.0 and config.predict != "mel"):
            raise UserError(
                f"model.max_mel_weight is {max_mel_weight} and model.flow.predict is {config.predict}, "
                "expected 1 or more, and 1 where velocities are predicted"
            )
        self.init_from, self.start_from_data = init_from, start_from_data
        self._bands_are_given = False  # set by `init_from`, whose weights were trained with them
        if init_from is not None:
            report = load_fitting(self.flow, flow_weights(init_from), init_from)
            self._bands_are_given = BAND_MEAN in report.loaded
            rank_zero_info(f"{init_from}: {report}")
        self.encoder_alone = config.steps == 0
        if self.encoder_alone:  # the other parts do not contribute to the output
            for part in self._not_of_the_prior():
                part.requires_grad_(False)
        self.prior_weight, self.prior_steps, self.max_mel_weight = prior_weight, prior_steps, max_mel_weight
        self.lr, self.weight_decay = lr, weight_decay
        self.streaming_share, self.max_prompt_share = streaming_share, max_prompt_share
        self.example_count = examples
        self.examples: list[Resynthesis] = []
        self.val_loss, self.val_streaming, self.val_prior = MeanMetric(), MeanMetric(), MeanMetric()
        self.val_by_time = MeanByTime()
        self.val_distance, self.val_roughness = MeanMetric(), MeanMetric()

    # --- set-up ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        check_weights(self.trainer.precision)
        data = data_of(self.trainer, DecoderData)
        frozen, config = data.frozen, self.flow.config
        codebook_KD = frozen.tokenizer.encoder.codebook.weight.detach()
        if len(codebook_KD) > config.vocab_size:
            raise UserError(
                f"data.speech_tokenizer {data.speech_tokenizer} has {len(codebook_KD)} codes, "
                f"model.flow.vocab_size is {config.vocab_size}: raise it"
            )
        if frozen.speaker_dim not in (0, config.speaker_dim):
            raise UserError(
                f"data.speaker {data.speaker} gives {frozen.speaker_dim} values, model.flow.speaker_dim is "
                f"{config.speaker_dim}: set them equal"
            )
        if stage != "fit":
            return
        mean_M, deviation_M, voice_S = data.statistics()
        self._source = {
            "speech_tokenizer": str(data.speech_tokenizer),
            "log_mel": data.log_mel,
            "speaker": data.speaker,
            "fingerprints": frozen.fingerprints,
            "voice": voice_S if len(voice_S) else None,
        }
        if self.flow.bands is not None:
            if not self._bands_are_given:
                self.flow.bands.set(mean_M, deviation_M)
            mean_M = torch.zeros_like(mean_M)
        if self.start_from_data and self.init_from is None:
            start_embeddings(self.flow.input_embedding.weight, codebook_KD)
            with torch.no_grad():
                self.flow.get_parameter("decoder.estimator.final_proj.bias").copy_(mean_M)
                if self.prior_weight:
                    self.flow.encoder_proj.bias.copy_(mean_M)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["decoder"] = {"flow": asdict(self.flow.config), **self._source}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.flow.parameters() if p.requires_grad]
        groups = decay_groups("flow", trained, self.lr, self.weight_decay)
        return self.adamw(groups, betas=(0.9, 0.98))

    def flow_batch(self, batch: DecoderBatch) -> FlowBatch:
        """The training batch of the flow; speaker vectors are zeros if the data has none."""
        speaker_BS = batch.speaker_BS
        if not speaker_BS.shape[-1]:
            speaker_BS = batch.mel_BMT.new_zeros(len(batch), self.flow.config.speaker_dim)
        return FlowBatch(batch.codes_BN, batch.lengths_B, batch.mel_BMT, speaker_BS)

    # --- training -------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        # Each rank draws its own times, noise and prompts. The random states of a resumed run are restored
        # later.
        if self.trainer.world_size > 1:
            seed = torch.initial_seed() + 1009 * self.trainer.global_rank
            torch.manual_seed(seed)
            random.seed(seed)

    def training_step(self, batch: DecoderBatch, batch_idx: int) -> Tensor:
        self.count_targets(len(batch))
        if not len(batch):  # no file could be read: adds zeros to the gradients
            return sum((p.sum() * 0.0 for p in self.parameters()), torch.zeros((), device=self.device))
        if self.encoder_alone or self.global_step < self.prior_steps:
            return self._prior_step(batch)
        frames = [rates.FRAMES_PER_CODE_DECODER * n for n in batch.lengths]
        draws = draw(self.flow.config, batch.mel_BMT, frames, self.max_prompt_share)
        streaming = random.random() < self.streaming_share
        predicted = velocities(self.flow, self.flow_batch(batch), draws, streaming, self.max_mel_weight)
        loss = predicted.loss()
        # Lightning uses a metric named `step` as the x axis: step 1 is the state after the first step.
        self.log("step", self.on_device(self.global_step + 1), batch_size=len(batch))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        if self.prior_weight:
            prior = predicted.prior_loss()
            self.log("train/prior", prior.detach(), batch_size=len(batch))
            loss = loss + self.prior_weight * prior
        return loss

    def _prior_step(self, batch: DecoderBatch) -> Tensor:
        loss = prior_loss(self.flow, self.flow_batch(batch), random.random() < self.streaming_share)
        self.log("step", self.on_device(self.global_step + 1), batch_size=len(batch))
        self.log("train/prior", loss.detach(), batch_size=len(batch))
        if self.encoder_alone:
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        if waits_for_all_gradients(self.trainer):
            loss = loss + sum(p.sum() * 0.0 for p in self.parameters() if p.requires_grad)
        return self.prior_weight * loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.global_step < self.prior_steps:
            # Removes the zero gradients that a reducer needs: AdamW would count a step and decay the weights.
            for part in self._not_of_the_prior():
                for p in part.parameters():
                    p.grad = None

    def _not_of_the_prior(self) -> tuple[torch.nn.Module, ...]:
        return self.flow.decoder, self.flow.spk_embed_affine_layer

    # --- validation -----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.examples = []
        self.val_by_time.reset()

    def validation_step(self, batch: DecoderBatch, batch_idx: int) -> None:
        if not len(batch):
            return
        if self.encoder_alone:
            self._validate_encoder(batch)
        else:
            self._validate_velocities(batch, batch_idx)
        if len(self.examples) < self.example_count:
            self.examples.append(self.resynthesis(batch, 0))
            self.val_distance.update(mel_distance(self.examples[-1]))
            self.val_roughness.update(roughness(self.examples[-1]))

    def _validate_encoder(self, batch: DecoderBatch) -> None:
        frames = int(batch.lengths_B.sum()) * rates.FRAMES_PER_CODE_DECODER
        for streaming, metric in ((False, self.val_loss), (True, self.val_streaming)):
            loss = prior_loss(self.flow, self.flow_batch(batch), streaming)
            metric.update(loss, frames)
            if not streaming:
                self.val_prior.update(loss, frames)

    def _validate_velocities(self, batch: DecoderBatch, batch_idx: int) -> None:
        frames_B = rates.FRAMES_PER_CODE_DECODER * batch.lengths_B
        # The same random draws at every validation; the random state of the training is not used.
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        prefixes = random.Random(batch_idx)
        draws = draw(self.flow.config, batch.mel_BMT, frames_B, self.max_prompt_share, prefixes, generator)
        values_B = frames_B * rates.DECODER_MEL_BINS
        for streaming, metric in ((False, self.val_loss), (True, self.val_streaming)):
            predicted = velocities(self.flow, self.flow_batch(batch), draws, streaming, self.max_mel_weight)
            means_B = predicted.squared_errors() / values_B
            metric.update(means_B, frames_B.float())
            if not streaming:
                self.val_by_time.update(draws.t_B11.flatten(), means_B, frames_B.float())
                self.val_prior.update(predicted.prior_errors() / values_B, frames_B.float())

    def resynthesis(self, batch: DecoderBatch, item: int) -> Resynthesis:
        """A clip generated from the codes and the speaker vector of an item, without a voice prompt.

        Uses full attention masks if the model was trained with them, otherwise streaming masks.
        """
        codes_N = batch.codes_BN[item, : batch.lengths_B[item]]
        made_MT = self.flow.sample(
            codes_N[None],
            prompt=Prompt.none(self.flow_batch(batch).speaker_BS[item]),
            streaming=self.streaming_share == 1.0,
        )[0]
        truth_MT = batch.mel_BMT[item, :, : made_MT.shape[-1]]
        return Resynthesis(batch.ids[item], truth_MT.float().cpu(), made_MT.float().cpu())

    def on_validation_epoch_end(self) -> None:
        stage = "test" if self.trainer.testing else "val"
        self.log("step", float(steps_done(self.trainer)))
        self.log(f"{stage}/loss", self.val_loss, prog_bar=True)
        self.log(f"{stage}/loss_streaming", self.val_streaming)
        if self.prior_weight:
            self.log(f"{stage}/prior", self.val_prior)
        by_time = [] if self.encoder_alone else self.val_by_time.compute()
        for n, mean in enumerate(by_time):  # the same on every rank
            if mean.isfinite():
                self.log(f"{stage}/loss_t{n + 1}of{TIME_BINS}", mean)
        if self.example_count:
            self.log(f"{stage}/mel_distance_db", self.val_distance)
            self.log(f"{stage}/roughness", self.val_roughness)

    test_step, on_test_epoch_start, on_test_epoch_end = (
        validation_step,
        on_validation_epoch_start,
        on_validation_epoch_end,
    )

    def predict_step(self, batch: DecoderBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Distance of each clip's mel, generated from its codes, from the mel of the recording."""
        clips = [self.resynthesis(batch, item) for item in range(len(batch))]
        return [{"id": clip.id, "mel_distance_db": float(mel_distance(clip))} for clip in clips]


def mel_distance(clip: Resynthesis) -> Tensor:
    """Mean absolute difference over frames and bands, in dB."""
    return DECIBELS * (clip.made_MT - clip.truth_MT).abs().mean()


def roughness(clip: Resynthesis) -> Tensor:
    """Mean absolute difference of adjacent frames, divided by that of the true mel.

    1 means as rough as speech; noise increases it, a blurred mel decreases it.
    """
    made, truth = (mel_MT.diff(dim=1).abs().mean() for mel_MT in (clip.made_MT, clip.truth_MT))
    return made / truth.clamp(min=1e-6)


@torch.no_grad()
def start_embeddings(weight_VH: Tensor, codebook_KD: Tensor) -> None:
    """Fills the first K rows from the codebook: centred, rotated by a fixed matrix, unit variance."""
    rows_KD = codebook_KD.float() - codebook_KD.float().mean(dim=0)
    generator = torch.Generator().manual_seed(0)
    size = max(rows_KD.shape[1], weight_VH.shape[1])
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    turned = rows_KD.cpu() @ rotation[: rows_KD.shape[1], : weight_VH.shape[1]]
    weight_VH[: len(turned)] = (turned / turned.std()).to(weight_VH)
