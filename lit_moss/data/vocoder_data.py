"""Waves and mels for the vocoder: manifests -> random crops for training, whole clips for validation.

The crops of batch n depend only on the manifests, the seed and n (see `order`): an epoch contains an
utterance as often as crops fit into it, and the start of each crop is drawn from (seed, n, position in the
batch). Unreadable files, workers and resuming work as in `SpeechDataModule`.

With a `decoder`, mels are generated from the recordings' codes, as the vocoder will receive them: they lack
details of the recordings, which the vocoder learns to restore.

Shapes: B items, L samples at 24 kHz (= 480 T), M mel bands, T mel frames.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as nnf
from torch.nn.utils.rnn import pad_sequence

from lit_moss.audio import io, rates
from lit_moss.audio.features import decoder_mel
from lit_moss.codec.vocoder_net import SILENCE
from lit_moss.corpora.manifest import Utterance
from lit_moss.data.batches import VocoderBatch
from lit_moss.data.order import BatchOrder, SampleKey
from lit_moss.data.speech_data import SpeechDataModule, SpeechSet
from lit_moss.errors import UserError
from lit_moss.hub.decoder_mels import DecoderMels

HOP = rates.DECODER_HOP_SAMPLES
FRAMES_PER_SEC = rates.DECODER_RATE_HZ / HOP
# Frames read on either side of a crop, so that its mel has no reflection padding, which needs 720 samples.
MARGIN = 2


class VocoderDataModule(SpeechDataModule):
    """Manifests -> `VocoderBatch`es.

    Args:
        train: Manifests to train on: paths, or `embedded:everyday-en`; transcripts are not needed.
        validation: Manifests to validate on, whole clips.
        weights: Number of times an epoch contains each manifest of `train`, e.g. [1.0, 0.5]; empty: once
            each.
        crop_sec: Length of a training crop in seconds; shorter utterances are padded with silence.
        gain_db: Maximum random change of a crop's level in dB, down or up; 0: no change.
        batch_sec: Audio of a training batch in seconds.
        validation_batch_sec: Audio budget of a validation batch in seconds, padding included.
        max_sec: Maximum utterance length in seconds; longer utterances are left out, counted and named.
        min_sec: Minimum utterance length in seconds.
        seed: Seed of the order and the crops.
        workers: Number of loader processes per rank; 0: load in the training process.
        max_bad_share: Fraction of unreadable utterances above which the run stops.
        decoder: Decoder whose mels are the input, see `open_codec`. None: mels of the recordings. The
            decoder's mels are computed once and kept in the cache and in memory, at 8 kB per second.
        train_items: Number of utterances to train on, drawn with the seed. None: all. A decoder's mels are
            computed only for these.
    """

    def __init__(
        self,
        train: list[str] | None = None,
        validation: list[str] | None = None,
        weights: list[float] | None = None,
        crop_sec: float = 0.8,
        gain_db: float = 6.0,
        batch_sec: float = 12.8,
        validation_batch_sec: float = 80.0,
        max_sec: float = 30.0,
        min_sec: float = 0.5,
        seed: int = 1,
        workers: int = 1,
        max_bad_share: float = 0.01,
        decoder: str | None = None,
        train_items: int | None = None,
    ) -> None:
        # The base class compares its budget with whole utterances; here batches contain crops.
        super().__init__(
            train, validation, weights, max_sec, validation_batch_sec, max_sec, min_sec, seed,
            workers=workers, freq_masks=0, max_bad_share=max_bad_share,
        )  # fmt: skip
        if not 0.1 <= crop_sec <= batch_sec:
            raise UserError(
                f"data.crop_sec is {crop_sec} and data.batch_sec {batch_sec}, expected a crop of 0.1 s or "
                "more, and a batch of one or more crops"
            )
        if not 0.0 <= gain_db <= 40.0:
            raise UserError(f"data.gain_db is {gain_db}, expected 0 to 40")
        if train_items is not None and train_items < 1:
            raise UserError(f"data.train_items is {train_items}, expected 1 or more, or null for all")
        self.batch_sec, self.crop_sec, self.train_items = batch_sec, crop_sec, train_items
        self.crops = Crops(seed, round(crop_sec * FRAMES_PER_SEC), gain_db)
        self.decoder = None if decoder is None else DecoderMels(decoder)

    def setup(self, stage: str) -> None:
        super().setup("validate")
        if stage != "fit" or self._train_set is not None:
            return
        if not self.train:
            raise UserError("data.train is empty: expected a manifest, e.g. [embedded:everyday-en]")
        utterances, weights = self._read([self._locate(n, "train") for n in self.train], self.weights)
        if self.train_items is not None and self.train_items < len(utterances):
            drawn = np.random.default_rng(self.seed).choice(len(utterances), self.train_items, replace=False)
            utterances, weights = ([of[i] for i in sorted(drawn)] for of in (utterances, weights))
        self._train_set = _CropSet(utterances, self.crops, self._decoded(utterances))
        crops = [max(1.0, (u.duration_sec or 0.0) / self.crop_sec) for u in utterances]
        copies = [weight * count for weight, count in zip(weights, crops, strict=True)]
        size = max(1, int(self.batch_sec / self.crop_sec + 1e-6))
        self.order = BatchOrder([1.0] * len(utterances), size, self.seed, copies, buckets=1)
        rank_zero_info(
            f"train: {len(utterances)} utterances, {sum(u.duration_sec or 0.0 for u in utterances) / 60:.1f} "
            f"min, {self.order.batches_per_epoch} batches of {size} crops an epoch"
        )

    def _make_set(self, utterances: list[Utterance], augmentation: Any) -> "_CropSet":
        return _CropSet(utterances, None, self._decoded(utterances))

    def _decoded(self, utterances: list[Utterance]) -> list[np.ndarray | None] | None:
        return None if self.decoder is None else self.decoder.cached(utterances)

    def _with_texts(self, manifest: Path, utterances: list[Utterance]) -> list[Utterance]:
        return utterances  # transcripts are not used

    def collate_function(self) -> Callable[[list[Any]], Any]:
        return collate

    def fingerprints(self) -> dict[str, str]:
        crops = hashlib.sha256(repr(self.crops).encode()).hexdigest()[:16]
        own = super().fingerprints() | {"augmentation": crops}
        return own if self.decoder is None else own | {"decoder": self.decoder.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.training_batches is None:
            return  # validation alone may use other mels
        saved, now = state_dict["fingerprints"].get("decoder"), self.fingerprints().get("decoder")
        if saved != now:
            raise UserError(
                f"the checkpoint was trained on the mels of another decoder (fingerprint {saved}, now "
                f"{now}): give that of the training, or start a new run"
            )
        super().load_state_dict(state_dict)


@dataclass(frozen=True)
class Crops:
    """Random crops, drawn from (seed, batch number, position in the batch).

    Args:
        seed: Seed of the draws.
        frames: Number of mel frames of a crop.
        gain_db: Maximum change of level in dB.
    """

    seed: int
    frames: int
    gain_db: float

    def draw(self, key: SampleKey, frames: int) -> tuple[int, float]:
        """First frame of a crop of an utterance with `frames` frames, and the factor on its samples."""
        rng = np.random.default_rng([self.seed, key[1], key[2]])
        first = int(rng.integers(max(0, frames - self.frames) + 1))
        return first, float(10.0 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))


class _CropSet(SpeechSet):
    """Utterances by sample key: samples at 24 kHz and their mel, or the reason why the file cannot be read.

    Args:
        utterances: Utterances of the manifests.
        crops: Draws the crops; None: whole clips.
        decoded: The decoder's mel of each utterance, float16 (80, T), or None if the file cannot be read.
            None: no decoder.
    """

    def __init__(
        self,
        utterances: list[Utterance],
        crops: Crops | None,
        decoded: list[np.ndarray | None] | None = None,
    ) -> None:
        super().__init__(utterances, None)
        self._crops, self._decoded = crops, decoded

    def __getitem__(self, key: SampleKey) -> Any:
        u = self.utterances[key[0]]
        mel_MT = None if self._decoded is None else self._decoded[key[0]]
        try:
            if self._decoded is not None and mel_MT is None:
                # Reading it again gives the reason; a file that is readable by now still has no mel.
                io.read(u.audio, rates.DECODER_RATE_HZ, u.offset_sec, u.duration_sec, channel=u.channel)
                return u, f"{u.audio}: could not be read when the decoder's mels were computed"
            if self._crops is None:
                wave_T = io.read(
                    u.audio, rates.DECODER_RATE_HZ, u.offset_sec, u.duration_sec, channel=u.channel
                )
                return u, *_whole(wave_T, mel_MT)
            return u, *_crop(u, key, self._crops, mel_MT)
        except io.UnreadableAudio as error:
            return u, str(error)


def _whole(wave_T: Tensor, decoded_MT: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """A recording cut to whole frames, and its mel."""
    if len(wave_T) < (MARGIN + 1) * HOP:
        wave_T = nnf.pad(wave_T, (0, (MARGIN + 1) * HOP - len(wave_T)))
    if decoded_MT is None:
        mel_MT = decoder_mel(wave_T[None])[0]
    else:
        mel_MT = _part(decoded_MT, 0, min(len(wave_T) // HOP, decoded_MT.shape[-1]))
    return wave_T[: HOP * mel_MT.shape[-1]], mel_MT


def _part(decoded_MT: np.ndarray, first: int, frames: int, factor: float = 1.0) -> Tensor:
    """Frames of a decoder's mel in float32, with the level scaled by `factor`; silence after its end."""
    part_MT = torch.from_numpy(decoded_MT[:, first : first + frames].astype(np.float32)) + math.log(factor)
    return nnf.pad(part_MT.clamp(min=SILENCE), (0, frames - part_MT.shape[-1]), value=SILENCE)


def _crop(
    utterance: Utterance, key: SampleKey, crops: Crops, decoded_MT: np.ndarray | None
) -> tuple[Tensor, Tensor]:
    """Samples and mel of a crop, all of the same length; reads only that part of the file."""
    frames = int((utterance.duration_sec or 0.0) * FRAMES_PER_SEC)
    # A final part shorter than one code has no decoder mel.
    first, gain = crops.draw(key, frames if decoded_MT is None else min(frames, decoded_MT.shape[-1]))
    begin, end = max(0, first - MARGIN), first + crops.frames + MARGIN
    begin_sec = begin / FRAMES_PER_SEC
    # Reading beyond the end would count as damage.
    seconds = min((end - begin) / FRAMES_PER_SEC, (utterance.duration_sec or 0.0) - begin_sec)
    offset_sec = utterance.offset_sec + begin_sec
    wave_T = (
        io.read(utterance.audio, rates.DECODER_RATE_HZ, offset_sec, seconds, channel=utterance.channel) * gain
    )
    wave_T = nnf.pad(wave_T, (0, max(0, (end - begin) * HOP - len(wave_T))))
    inside = first - begin
    samples = slice(inside * HOP, (inside + crops.frames) * HOP)
    if decoded_MT is not None:
        return wave_T[samples], _part(decoded_MT, first, crops.frames, gain)
    mel_MT = decoder_mel(wave_T[None])[0]
    return wave_T[samples], mel_MT[:, inside : inside + crops.frames]


def collate(items: list[Any]) -> VocoderBatch:
    """Collates items of a loader into a batch."""
    good = [item for item in items if len(item) == 3]
    wave_BL, mel_BTM = torch.zeros(0, 0), torch.zeros(0, 0, rates.DECODER_MEL_BINS)
    if good:
        wave_BL = pad_sequence([wave for _, wave, _ in good], batch_first=True)
        mel_BTM = pad_sequence([mel.T for *_, mel in good], batch_first=True)
    return VocoderBatch(
        wave_BL=wave_BL,
        mel_BMT=mel_BTM.transpose(1, 2).contiguous(),
        frames=[mel.shape[-1] for *_, mel in good],
        ids=[u.id for u, *_ in good],
        skipped=[f"{item[0].key}\t{item[1]}" for item in items if len(item) == 2],
    )
