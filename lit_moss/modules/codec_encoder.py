"""Training of the speech tokenizer by speech recognition alone (arXiv:2510.00499, section 2.2).

    waveform -> log-mel -> causal encoder -> pooled frames, 12.5 Hz -> nearest code
        -> CTC head, 50 Hz -> characters

loss = CTC(codes) + frame_loss_weight CTC(frames before pooling) + commitment. Until `quantize_from_step` the
head reads the unquantized pooled frames; then the codebook is initialised by k-means on real frames and
follows them by moving averages (`codebook`).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.text import CharErrorRate, WordErrorRate

from lit_moss.audio import rates
from lit_moss.audio.features import CausalLogMel, whisper_log_mel
from lit_moss.audio.precision import check_weights
from lit_moss.codec import SpeechTokenizer, ctc, quantizer
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig
from lit_moss.codec.pretrained import load_encoder
from lit_moss.contracts import SpeechData
from lit_moss.data.augment import apply_spec_masks
from lit_moss.data.batches import SpeechBatch
from lit_moss.data.transcripts import DEFAULT_CHARSET, Charset
from lit_moss.errors import UserError
from lit_moss.hub.tokenizer import tokenizer_path
from lit_moss.modules.codebook import CodebookModule, CodebookSchedule
from lit_moss.optimizer_groups import decay_groups
from lit_moss.trainer_access import data_of, steps_done


@dataclass
class Example:
    """A validated utterance, for pictures and tables.

    Args:
        id: Name of the utterance.
        wave_T: Samples at 16 kHz, (T,).
        mel_MF: Log-mel spectrogram (M, F).
        codes_N: Codes (N,).
        text: Normalised transcript.
        hypothesis: Greedy transcript.
    """

    id: str
    wave_T: Tensor
    mel_MF: Tensor
    codes_N: Tensor
    text: str
    hypothesis: str


class CodecEncoder(CodebookModule):
    """Trains a speech tokenizer with a CTC head.

    Args:
        init_from: Weights to start from: a run or checkpoint of a tokenizer, a local folder, a hub id,
            `embedded:whisper-tiny` or `embedded:whisper-base`. None: random weights.
        encoder: Sizes of the encoder. None: those of `init_from`.
        codebook_size: Number of codebook entries. None: as given by `encoder` or `init_from`.
        log_mel: Features: `causal` (for streaming) or `whisper` (whole recordings only). None: as given by
            `encoder` or `init_from`, otherwise causal.
        head_layers: Number of causal transformer layers of the CTC head.
        head_width: Width of the CTC head; a multiple of 64, the width of its attention heads.
        head_dropout: Dropout probability on the input of the CTC head.
        encoder_lr: Base learning rate of the encoder.
        head_lr: Base learning rate of the CTC head.
        weight_decay: AdamW's weight decay, applied to matrices only.
        quantize_from_step: Optimizer steps without quantization before k-means; ignored if `init_from` has a
            codebook.
        kmeans_batches: Number of training batches (of every rank) that k-means uses.
        frame_loss_weight: Weight of a CTC loss on the 50 Hz frames before pooling. It shortens CTC's initial
            plateau: without it the loss was still 2.8 after 200 steps, with it 2.0 within 100.
        restart_share: A code is dead if its average count is below restart_share * decay^interval, that is,
            this multiple of the count that one update leaves after a restart interval. The GLM-4-Voice
            tokenizer uses 1.
        examples: Number of validated utterances to keep for pictures.
    """

    val_use_K: Tensor

    def __init__(
        self,
        init_from: str | None = "embedded:whisper-tiny",
        encoder: EncoderConfig | None = None,
        codebook_size: int | None = None,
        head_layers: int = 2,
        head_width: int = 384,
        head_dropout: float = 0.0,
        encoder_lr: float = 3e-4,
        head_lr: float = 1e-3,
        weight_decay: float = 0.01,
        quantize_from_step: int = 250,
        kmeans_batches: int = 20,
        frame_loss_weight: float = 1.0,
        restart_share: float = 0.1,
        examples: int = 6,
        log_mel: Literal["causal", "whisper"] | None = None,
    ) -> None:
        if head_width < 64 or head_width % 64 or head_layers < 0 or not 0.0 <= head_dropout <= 1.0:
            raise UserError(
                f"model.head_width is {head_width}, head_layers {head_layers}, head_dropout {head_dropout}, "
                "expected a multiple of 64, 0 layers or more, and a share from 0 to 1"
            )
        network, ready = _build_encoder(init_from, encoder, codebook_size)
        if log_mel is not None:
            network.config = replace(network.config, log_mel=log_mel)
        super().__init__(network, CodebookSchedule(quantize_from_step, kmeans_batches, restart_share), ready)
        self.vocabulary: ctc.CharVocabulary | None = None
        self.charset: Charset | None = None  # characters of the data's transcripts, None until they are known
        self.head: ctc.CTCHead | None = None
        self.head_sizes = {
            "width": head_width,
            "layers": head_layers,
            "heads": head_width // 64,
            "dropout": head_dropout,
        }
        self.encoder_lr, self.head_lr, self.weight_decay = encoder_lr, head_lr, weight_decay
        self.frame_loss_weight = frame_loss_weight
        self.example_count = examples
        self.examples: list[Example] = []
        # Metric objects instead of `self.log` per batch, because a rank may have nothing to log.
        self.cer, self.wer = CharErrorRate(), WordErrorRate()
        self.val_ctc, self.val_too_long = MeanMetric(), SumMetric()
        size = network.config.quantize_vocab_size
        self.register_buffer("val_use_K", torch.zeros(size, dtype=torch.long), persistent=False)

    # --- set-up ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        check_weights(self.trainer.precision, ("32-true",))
        data = data_of(self.trainer, SpeechData)
        self._check_sizes(data, stage)
        self.charset = data.charset
        if self.vocabulary is None and stage == "fit":
            self.vocabulary = ctc.CharVocabulary.from_texts(data.train_texts())
            if len(self.vocabulary) == 2:
                raise UserError(
                    "the training manifests hold no transcripts: the tokenizer learns by recognising them; "
                    "give manifests with `text`"
                )
        if self.vocabulary is not None:
            self._build_head(self.vocabulary)

    def _check_sizes(self, data: object, stage: str) -> None:
        """Checks the data's mask width and maximum length (where it states them) against the network."""
        bins, own = getattr(data, "masked_bins", None), self.encoder.config.num_mel_bins
        if stage == "fit" and not self.resumes and bins not in (None, own):
            raise UserError(f"data.mel_bins is {bins}, the network has {own} (num_mel_bins): set them equal")
        longest_sec = getattr(data, "longest_sec", 0.0)
        limit = rates.segment_samples(self.encoder.config.max_source_positions)
        if longest_sec * rates.TOKENIZER_RATE_HZ > limit:
            raise UserError(
                f"data.max_sec lets items of {longest_sec:.2f} s pass, at the slowest speed and shifted; "
                f"max_source_positions are for {limit / rates.TOKENIZER_RATE_HZ:.2f} s: lower max_sec"
            )

    def _build_head(self, vocabulary: ctc.CharVocabulary) -> None:
        if self.head is None:
            self.vocabulary = vocabulary
            self.head = ctc.CTCHead(self.encoder.config.d_model, len(vocabulary), **self.head_sizes)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["speech_tokenizer"] = {
            "config": self.encoder.config.to_official(),
            "codebook_ready": bool(self.codebook_ready),
            "charset": self.charset or DEFAULT_CHARSET,
            "characters": self.vocabulary.characters if self.vocabulary else "",
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        charset = checkpoint["speech_tokenizer"].get("charset", DEFAULT_CHARSET)
        if self.charset not in (None, charset):
            raise UserError(
                f"the checkpoint was trained with data.charset {charset}, this run has {self.charset}: "
                f"set it to {charset}, or start a new run"
            )
        self.charset = charset
        saved = checkpoint["speech_tokenizer"]["characters"]
        if self.vocabulary is not None and self.vocabulary.characters != saved:
            raise UserError(
                f"the checkpoint's characters are {saved!r}, the training manifests' are "
                f"{self.vocabulary.characters!r}: resume on the data it was trained on"
            )
        self._build_head(ctc.CharVocabulary(saved))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.head is not None
        groups = []
        for part, module, lr in (
            ("encoder", self.encoder, self.encoder_lr),
            ("head", self.head, self.head_lr),
        ):
            trained = [p for p in module.parameters() if p.requires_grad]
            groups += decay_groups(part, trained, lr, self.weight_decay)
        return self.adamw(groups, betas=(0.9, 0.98))

    # --- the model ------------------------------------------------------------------------------------------

    def log_mel(self, batch: SpeechBatch) -> Tensor:
        """Log-mel features of a batch (B, M, T/160), float32, with its SpecAugment masks applied."""
        with torch.no_grad(), torch.autocast(batch.wave_BT.device.type, enabled=False):
            bins, whole = self.encoder.config.num_mel_bins, self.encoder.config.log_mel == "whisper"
            mel_BMF = whisper_log_mel(batch.wave_BT, bins) if whole else CausalLogMel(bins)(batch.wave_BT)
            return apply_spec_masks(mel_BMF, batch.freq_masks, batch.time_masks)

    def pooled_frames(self, mel_BMF: Tensor, samples_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden frames (B, L, D), pooled frames (B, N, D), float32, and speech mask, bool (B, N)."""
        hidden_BLD = self.encoder(mel_BMF)
        pooled_BND = self.encoder.pool(hidden_BLD).float()
        codes_B = -(-samples_B // rates.SAMPLES_PER_CODE)
        valid_BN = torch.arange(pooled_BND.shape[1], device=codes_B.device) < codes_B[:, None]
        return hidden_BLD, pooled_BND, valid_BN

    def speech_frames(self, batch: SpeechBatch) -> Tensor:
        _, pooled_BND, valid_BN = self.pooled_frames(self.log_mel(batch), batch.samples_B)
        return pooled_BND[valid_BN]

    @property
    def later_metrics(self) -> list[str]:
        """Names of the metrics that are logged only once the codebook is initialised."""
        later = ("codebook_used", "codebook_perplexity", "bit_rate")
        return [] if self.quantizing else [f"val/{name}" for name in later]

    # --- training -------------------------------------------------------------------------------------------

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> Tensor:
        assert self.head is not None and self.vocabulary is not None
        labels = [self.vocabulary.encode(text) for text in batch.texts]
        codes = [rates.codes_of_samples(n) for n in batch.samples]
        frames = [n * rates.HIDDEN_PER_CODE for n in codes]
        fitting = ctc.fitting_items(frames, labels)
        self.count_targets(len(fitting))
        if not len(batch):  # no file could be read: adds zeros to the gradients
            return sum(
                (p.sum() * 0.0 for p in self.parameters() if p.requires_grad),
                torch.zeros((), device=self.device),
            )
        hidden_BLD, pooled_BND, valid_BN = self.pooled_frames(self.log_mel(batch), batch.samples_B)
        commitment = pooled_BND.new_zeros(())
        if self.quantizing:
            pooled_BND, commitment = self._quantize(pooled_BND, valid_BN, codes)
        code_loss, fits_B = ctc.ctc_loss(self.head(pooled_BND), frames, labels)
        frame_loss, _ = ctc.ctc_loss(self.head.from_frames(hidden_BLD), frames, labels)
        config = self.encoder.config
        weight = config.quantize_commit_coefficient * config.quantize_loss_scale
        loss = code_loss + self.frame_loss_weight * frame_loss + weight * commitment
        if fitting:
            self._log_losses(loss, code_loss, frame_loss, commitment, fits_B)
        return loss

    def _quantize(self, pooled_BND: Tensor, valid_BN: Tensor, codes: list[int]) -> tuple[Tensor, Tensor]:
        """Replaces speech frames by codebook rows (straight-through); also returns the commitment loss."""
        # Indices computed on the host: with a boolean mask the host would wait for the device to count.
        N = pooled_BND.shape[1]
        at_S = torch.cat([torch.arange(b * N, b * N + n) for b, n in enumerate(codes)])
        x_SD = pooled_BND.flatten(0, 1)[at_S.to(self.device, non_blocking=True)]
        codes_S = quantizer.nearest(x_SD, self.encoder.codebook.weight)
        quantized_SD = self.encoder.codebook(codes_S)
        self.keep_frames(x_SD, codes_S)
        rows_SD = quantizer.straight_through(x_SD, quantized_SD)
        return (
            pooled_BND.masked_scatter(valid_BN[..., None], rows_SD),
            quantizer.commitment_loss(x_SD, quantized_SD),
        )

    def _log_losses(
        self, loss: Tensor, code_loss: Tensor, frame_loss: Tensor, commitment: Tensor, fits_B: Tensor
    ) -> None:
        items = len(fits_B)
        # Lightning uses a metric named `step` as the x axis: step 1 is the state after the first step.
        self.log("step", self.on_device(self.global_step + 1), batch_size=items)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=items)
        self.log_dict(
            {
                "train/ctc": code_loss.detach(),
                "train/ctc_frames": frame_loss.detach(),
                "train/commitment": commitment.detach(),
                "train/texts_too_long": (~fits_B).sum().float(),
            },
            batch_size=items,
        )

    # --- validation -----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.val_use_K.zero_()
        self.examples = []

    def validation_step(self, batch: SpeechBatch, batch_idx: int) -> None:
        assert self.head is not None and self.vocabulary is not None
        if not len(batch):
            return
        mel_BMF = self.log_mel(batch)
        _, pooled_BND, valid_BN = self.pooled_frames(mel_BMF, batch.samples_B)
        codes_BN = self.encoder.quantize(pooled_BND)
        if self.quantizing:
            self.val_use_K += torch.bincount(codes_BN[valid_BN], minlength=len(self.val_use_K))
            pooled_BND = self.encoder.codebook(codes_BN)
        log_probs_BLV = self.head(pooled_BND)
        frames_B = valid_BN.sum(dim=1) * rates.HIDDEN_PER_CODE
        labels = [self.vocabulary.encode(text) for text in batch.texts]
        loss, fits_B = ctc.ctc_loss(log_probs_BLV, frames_B, labels)
        hypotheses = [self.vocabulary.decode(ids) for ids in ctc.greedy(log_probs_BLV, frames_B)]
        pairs = [(hypothesis, text) for hypothesis, text in zip(hypotheses, batch.texts, strict=True) if text]
        for metric in (self.cer, self.wer):
            metric.update([hypothesis for hypothesis, _ in pairs], [text for _, text in pairs])
        if fitting := int(fits_B.sum()):
            self.val_ctc.update(loss, fitting)
        self.val_too_long.update((~fits_B).sum())
        self._keep_examples(batch, mel_BMF, codes_BN, hypotheses)

    def _keep_examples(
        self, batch: SpeechBatch, mel_BMF: Tensor, codes_BN: Tensor, hypotheses: list[str]
    ) -> None:
        """Keeps the first item of each of the first batches: the same utterances at every validation."""
        if len(self.examples) < self.example_count:
            n = int(batch.samples_B[0])
            codes = rates.codes_of_samples(n)
            self.examples.append(
                Example(
                    id=batch.ids[0],
                    wave_T=batch.wave_BT[0, :n].cpu(),
                    mel_MF=mel_BMF[0, :, : codes * rates.FRAMES_PER_CODE].float().cpu(),
                    codes_N=codes_BN[0, :codes].cpu(),
                    text=batch.texts[0],
                    hypothesis=hypotheses[0],
                )
            )

    def on_validation_epoch_end(self) -> None:
        stage = "test" if self.trainer.testing else "val"
        self.log("step", float(steps_done(self.trainer)))
        self.log(f"{stage}/cer", self.cer, prog_bar=True)
        self.log(f"{stage}/wer", self.wer)
        self.log(f"{stage}/ctc", self.val_ctc)
        self.log(f"{stage}/texts_too_long", self.val_too_long)
        if self.quantizing:
            use_K = self.val_use_K.clone()
            if self.trainer.world_size > 1:
                use_K = self.trainer.strategy.reduce(use_K, reduce_op="sum")
            self.val_use_K.copy_(use_K)
            perplexity = quantizer.perplexity(use_K)
            self.log(f"{stage}/codebook_used", (use_K > 0).float().mean())
            self.log(f"{stage}/codebook_perplexity", perplexity.float())
            self.log(f"{stage}/bit_rate", float(rates.CODE_RATE_HZ) * perplexity.log2().float())

    test_step, on_test_epoch_start, on_test_epoch_end = (
        validation_step,
        on_validation_epoch_start,
        on_validation_epoch_end,
    )

    def on_predict_epoch_start(self) -> None:
        if not self.quantizing:
            raise UserError("the checkpoint is from before quantization, it has no codebook: take another")

    def on_predict_start(self) -> None:
        self._tokenizer = SpeechTokenizer(self.encoder)  # one for all: it may make a float64 copy

    def predict_step(self, batch: SpeechBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Codes and transcript of each utterance; codes equal those of `SpeechTokenizer` in any precision."""
        assert self.head is not None and self.vocabulary is not None
        if not len(batch):
            return []
        _, pooled_BND, valid_BN = self.pooled_frames(self.log_mel(batch), batch.samples_B)
        waves = [wave[:n] for wave, n in zip(batch.wave_BT, batch.samples_B.tolist(), strict=True)]
        codes = self._tokenizer.encode(waves, rates.TOKENIZER_RATE_HZ)
        if self.quantizing:
            codes_BN = self.encoder.quantize(pooled_BND)
            codes_BN[valid_BN] = torch.cat(codes).to(self.device)
            pooled_BND = self.encoder.codebook(codes_BN)
        paths = ctc.greedy(self.head(pooled_BND), valid_BN.sum(dim=1) * rates.HIDDEN_PER_CODE)
        return [
            {"id": name, "codes": own.tolist(), "text": self.vocabulary.decode(path)}
            for name, own, path in zip(batch.ids, codes, paths, strict=True)
        ]


def _build_encoder(
    init_from: str | None, config: EncoderConfig | None, codebook_size: int | None
) -> tuple[CausalEncoder, bool]:
    """The network to train, and whether its codebook is already initialised."""
    if init_from is None:
        if config is None:
            raise UserError(
                "model.init_from and model.encoder are both empty: give weights to start from, or sizes"
            )
        config = replace(config, quantize_vocab_size=codebook_size or config.quantize_vocab_size)
        return CausalEncoder(config), False
    init_from = str(tokenizer_path(init_from))
    encoder, report = load_encoder(init_from, config)
    if codebook_size is not None and codebook_size != encoder.config.quantize_vocab_size:
        encoder, report = load_encoder(init_from, replace(encoder.config, quantize_vocab_size=codebook_size))
    rank_zero_info(f"{init_from}: {report}")
    return encoder, "codebook.weight" in report.loaded
