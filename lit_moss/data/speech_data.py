"""Speech with transcripts for training the speech tokenizer: manifests -> batches of padded waveforms.

The utterances of batch n depend only on the manifests, the seed and n (see `order`).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_moss.audio import io, rates
from lit_moss.audio.waves import pad_to_codes
from lit_moss.corpora.manifest import Utterance, fingerprint, read_manifest
from lit_moss.data import augment
from lit_moss.data.batches import PlainLoader, SpeechBatch
from lit_moss.data.order import BatchOrder, SampleKey
from lit_moss.data.ordered import OrderedDataModule
from lit_moss.data.transcripts import DEFAULT_CHARSET, Charset, normalise, report_losses
from lit_moss.data.wave_changes import ChangedWaves, WaveChanges, recordings_of
from lit_moss.errors import UserError


class SpeechDataModule(OrderedDataModule):
    """Manifests -> `SpeechBatch`es.

    With length buckets, SpecAugment and speed perturbation; unreadable files are skipped and reported by
    name.

    Args:
        train: Manifests to train on: paths, or `embedded:everyday-en` (a corpus made on first use).
            Utterances without a transcript are left out and reported; a `text` of "" means silence.
        validation: Manifests to validate on; `embedded:everyday-en` means its held-out part.
        weights: Number of times an epoch contains each manifest of `train`, e.g. [1.0, 0.5]; empty: once
            each.
        batch_sec: Audio budget of a training batch in seconds, padding included.
        validation_batch_sec: Audio budget of a validation batch in seconds, padding included.
        max_sec: Maximum utterance length in seconds; 30 is Whisper's window. Longer utterances are left out,
            counted and named, because their transcripts cannot be cut; cut them with `prepare manifest
            --max-sec`.
        min_sec: Minimum utterance length in seconds; shorter utterances are left out.
        seed: Seed of the order and the augmentation.
        buckets: Maximum number of length buckets.
        workers: Number of loader processes per rank; 0: load in the training process.
        freq_masks: SpecAugment: number of frequency masks per item.
        freq_mask_bins: SpecAugment: maximum width of a frequency mask, in mel bins.
        time_masks: SpecAugment: number of time masks per item.
        time_mask_share: SpecAugment: maximum length of a time mask as a fraction of the item.
        mel_bins: SpecAugment: number of mel bins; must equal the model's `num_mel_bins`.
        speeds: Speed factors to draw from, e.g. [0.9, 1.0, 1.1]; [1.0]: no change.
        shift: Insert 0 to 80 ms of silence before the item, so that its codes have different boundaries each
            time.
        augment_from_batch: Batches before this one are not augmented, because CTC leaves its plateau later
            with augmentation (on LJ Speech not within 260 steps with all of it, within 100 with frequency
            masks only).
        max_bad_share: Fraction of unreadable utterances above which the run stops.
        charset: Characters that transcripts keep: latin_chinese (a-z without accents, digits, Chinese), or
            auto (letters of every script that the manifests use), see `lit_moss.data.transcripts`.
        max_lost_share: Maximum fraction of a manifest's letters that `charset` may drop, 0 to 1; above it the
            run stops.
        wave_changes: Random changes of level, noise, DC offset and room acoustics. Default: none.
    """

    def __init__(
        self,
        train: list[str] | None = None,
        validation: list[str] | None = None,
        weights: list[float] | None = None,
        batch_sec: float = 40.0,
        validation_batch_sec: float = 80.0,
        max_sec: float = 30.0,
        min_sec: float = 0.1,
        seed: int = 1,
        buckets: int = 16,
        workers: int = 1,
        freq_masks: int = 2,
        freq_mask_bins: int = 15,
        time_masks: int = 0,
        time_mask_share: float = 0.05,
        mel_bins: int = 80,
        speeds: list[float] | None = None,
        shift: bool = False,
        augment_from_batch: int = 0,
        max_bad_share: float = 0.01,
        charset: Charset = DEFAULT_CHARSET,
        max_lost_share: float = 0.01,
        wave_changes: WaveChanges | None = None,
    ) -> None:
        super().__init__(seed, workers, max_bad_share)
        self.train, self.validation = list(train or []), list(validation or [])
        self.weights = list(weights or [1.0] * len(self.train))
        if len(self.weights) != len(self.train):
            raise UserError(
                f"data.weights has {len(self.weights)} entries for {len(self.train)} manifests in "
                "data.train, expected one each"
            )
        if any(not w > 0 for w in self.weights):
            raise UserError(f"data.weights is {self.weights}, expected numbers above 0")
        speeds = speeds or [1.0]
        if any(not 0.5 <= s <= 2.0 for s in speeds):
            raise UserError(f"data.speeds is {speeds}, expected factors from 0.5 to 2")
        if max_sec > rates.MAX_SEGMENT_SAMPLES / rates.TOKENIZER_RATE_HZ:
            raise UserError(f"data.max_sec is {max_sec}, expected at most 30 (Whisper's window)")
        if batch_sec < max_sec / min(speeds) + rates.SECONDS_PER_CODE * shift:
            raise UserError(
                f"data.batch_sec {batch_sec} is less than data.max_sec {max_sec} at the slowest speed "
                f"{min(speeds)}: one utterance would exceed a batch; raise it or lower max_sec"
            )
        if buckets < 1:
            raise UserError(f"data.buckets is {buckets}, expected 1 or more")
        self.batch_sec, self.validation_batch_sec = batch_sec, validation_batch_sec
        self.max_sec, self.min_sec = max_sec, min_sec
        self.buckets, self.speeds = buckets, speeds
        self.charset: Charset = charset
        self.max_lost_share = max_lost_share
        masks = {
            "bins": mel_bins,
            "freq_masks": freq_masks,
            "freq_bins": freq_mask_bins,
            "time_masks": time_masks,
            "time_share": time_mask_share,
        }
        augment.check_masks(**masks)
        self.masked_bins = mel_bins if freq_masks and freq_mask_bins else None  # must equal the model's
        self.augmentation = _Augmentation(seed, speeds, masks, shift, augment_from_batch)
        self.wave_changes = wave_changes or WaveChanges()
        self._without_length = 0  # unreadable files that belong to neither set, as their length is unknown
        self._train_set: SpeechSet | None = None
        self._validation_set: SpeechSet | None = None
        self.order: BatchOrder | None = None

    # --- set-up ---------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        for name in self.train + self.validation:
            self._locate(name, "train")

    def setup(self, stage: str) -> None:
        if self._validation_set is None and self.validation:
            manifests = [self._locate(n, "validation") for n in self.validation]
            utterances, _ = self._read(manifests, [1.0] * len(manifests))
            self._validation_set = self._make_set(utterances, None)
        if stage == "fit" and self._train_set is None:
            if not self.train:
                raise UserError(
                    "data.train is empty: expected at least one manifest, e.g. [embedded:everyday-en]"
                )
            read = self._read([self._locate(n, "train") for n in self.train], self.weights)
            utterances, weights = self._to_learn_from(*read)
            if self.wave_changes.on:
                noises, rooms = (
                    recordings_of(getattr(self.wave_changes, name), name) for name in ("noises", "rooms")
                )
                changed = ChangedWaves(self.wave_changes, self.seed, noises, rooms)
                self.augmentation = replace(self.augmentation, changed=changed)
            self._train_set = self._make_set(utterances, self.augmentation)
            longest_sec = [self._slowest_sec(u.duration_sec or 0.0) for u in utterances]
            self.order = BatchOrder(longest_sec, self.batch_sec, self.seed, weights, self.buckets)
            rank_zero_info(
                f"train: {len(utterances)} utterances, "
                f"{sum(u.duration_sec or 0.0 for u in utterances) / 60:.1f} min, "
                f"{self.order.batches_per_epoch} batches an epoch"
            )

    def _make_set(self, utterances: list[Utterance], augmentation: "_Augmentation | None") -> "SpeechSet":
        """The items of these utterances; subclasses override it."""
        return SpeechSet(utterances, augmentation)

    def _locate(self, name: str, part: str) -> Path:
        from lit_moss.corpora.everyday import EVERYDAY, VOICES, everyday_corpus

        if name in (EVERYDAY, VOICES):
            return everyday_corpus(name=name) / f"{part}.jsonl"
        if name.startswith("embedded:"):
            raise UserError(
                f"no embedded corpus {name!r}, expected {EVERYDAY!r}, {VOICES!r} or a manifest's path"
            )
        return Path(name)

    def _read(
        self, manifests: Sequence[Path], weights: Sequence[float]
    ) -> tuple[list[Utterance], list[float]]:
        """Utterances within the length limits, with durations, and their weights; the others are logged by
        name."""
        utterances, utterance_weights, outside = [], [], []
        for manifest, weight in zip(manifests, weights, strict=True):
            for utterance in self._with_texts(manifest, read_manifest(manifest)):
                utterance = self._with_duration(utterance)
                if utterance is None:
                    continue
                seconds = utterance.duration_sec or 0.0
                if self.min_sec <= seconds <= self.max_sec:
                    utterances.append(utterance)
                    utterance_weights.append(weight)
                else:
                    outside.append(f"{utterance.id} ({seconds:.1f} s)")
        names = ", ".join(map(str, manifests))
        if outside:
            rank_zero_info(
                f"{names}: {len(outside)} utterances outside {self.min_sec} to {self.max_sec} s left out: "
                f"{', '.join(outside[:5])}{', …' if len(outside) > 5 else ''}"
            )
        if not utterances:
            text = f"{names}: no utterance of {self.min_sec} to {self.max_sec} s"
            if self.skipped:
                text += f", {len(self.skipped)} cannot be read: {next(iter(self.skipped.values()))}"
            raise UserError(text)
        return utterances, utterance_weights

    def _slowest_sec(self, seconds: float) -> float:
        shift_sec = rates.SECONDS_PER_CODE if self.augmentation.shift else 0.0
        return seconds / min(self.speeds) + shift_sec

    @property
    def longest_sec(self) -> float:
        """Maximum length of an item in seconds, after a change of speed but within Whisper's window."""
        return min(self._slowest_sec(self.max_sec), rates.MAX_SEGMENT_SAMPLES / rates.TOKENIZER_RATE_HZ)

    def _to_learn_from(
        self, utterances: list[Utterance], weights: list[float]
    ) -> tuple[list[Utterance], list[float]]:
        """The utterances with a transcript, and their weights: CTC would learn the others as silence."""
        missing = [u.id for u in utterances if u.text is None]
        if not missing or len(missing) == len(utterances):  # if all lack one, the model reports it
            return utterances, weights
        rank_zero_info(
            f"train: {len(missing)} utterances without a transcript left out (text '' says silence): "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}"
        )
        kept = [(u, w) for u, w in zip(utterances, weights, strict=True) if u.text is not None]
        return [u for u, _ in kept], [w for _, w in kept]

    def _with_duration(self, utterance: Utterance) -> Utterance | None:
        """The utterance with its duration, read from the file's header if necessary; None if that fails."""
        if utterance.duration_sec is not None:
            return utterance
        try:
            header = io.info(utterance.audio, probe=False)
            seconds = io.span_sec(utterance.audio, header, utterance.offset_sec, None)
        except io.UnreadableAudio as error:
            self._without_length += utterance.key not in self.skipped
            self.skipped[utterance.key] = str(error)
            return None
        return replace(utterance, duration_sec=seconds)

    def _with_texts(self, manifest: Path, utterances: list[Utterance]) -> list[Utterance]:
        """Normalises transcripts, None where there is none; logs which letters were dropped.

        Raises:
            UserError: if more letters than `max_lost_share` were dropped.
        """
        texts = [u.text or "" for u in utterances]
        if note := report_losses(texts, manifest, self.charset, self.max_lost_share):
            rank_zero_info(note)
        return [
            replace(u, text=None if u.text is None else normalise(u.text, self.charset)) for u in utterances
        ]

    @property
    def utterances(self) -> int:
        """Number of utterances of training and validation."""
        return self._without_length + sum(
            len(part.utterances) for part in (self._train_set, self._validation_set) if part is not None
        )

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of data, validation data, augmentation and order, where they exist."""
        fingerprints = {}
        if self.train:
            fingerprints["data"] = fingerprint([self._locate(n, "train") for n in self.train])
        if self.validation:
            paths = [self._locate(n, "validation") for n in self.validation]
            fingerprints["validation"] = fingerprint(paths)
        augmentation = repr(self.augmentation)
        if self.wave_changes.on:
            used = [Path(name) for name in self.wave_changes.noises + self.wave_changes.rooms]
            augmentation += f"{self.wave_changes}{fingerprint(used) if used else ''}"
        fingerprints["augmentation"] = hashlib.sha256(augmentation.encode()).hexdigest()[:16]
        if self.order is not None:
            fingerprints["order"] = self.order.fingerprint
        return fingerprints

    def order_settings(self) -> dict[str, Any]:
        names = ("train", "weights", "batch_sec", "max_sec", "min_sec", "buckets", "speeds", "charset")
        return {name: getattr(self, name) for name in names} | super().order_settings()

    def train_texts(self) -> list[str]:
        """Normalised transcripts of the training utterances, from which the vocabulary is made."""
        return [u.text or "" for u in self.training_set().utterances]

    # --- loaders --------------------------------------------------------------------------------------------

    @property
    def training_batches(self) -> BatchOrder | None:
        return self.order

    def training_set(self) -> "SpeechSet":
        assert self._train_set is not None, "call setup('fit') first"
        return self._train_set

    def validation_set(self) -> "SpeechSet":
        assert self._validation_set is not None
        return self._validation_set

    def collate_function(self) -> Callable[[list[Any]], Any]:
        return collate

    def predict_dataloader(self) -> PlainLoader:
        return PlainLoader(self.val_dataloader())

    def validation_batches(self) -> list[list[SampleKey]]:
        """All utterances in order of length, up to `validation_batch_sec` of padded audio per batch."""
        if self._validation_set is None:
            return []
        lengths = [u.duration_sec or 0.0 for u in self._validation_set.utterances]
        batches: list[list[SampleKey]] = [[]]
        for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
            if batches[-1] and (len(batches[-1]) + 1) * lengths[index] > self.validation_batch_sec:
                batches.append([])
            batches[-1].append((index, 0, 0))
        return batches

    def probe_loader(self, batches: int) -> DataLoader:
        """The next `batches` training batches of this rank, unaugmented, for the k-means initialisation of
        the codebook.

        They depend only on `next_batch`, so that a resumed run uses the same ones.
        """
        assert self.order is not None
        rank, ranks = self.rank_and_ranks()
        keys = [self.order.keys(self.next_batch + rank + i * ranks) for i in range(batches)]
        return self.loader(SpeechSet(self.training_set().utterances, None), keys)


@dataclass(frozen=True)
class _Augmentation:
    """Random changes of a sample, drawn from (seed, batch number, position in the batch).

    Checkpoints store a hash of its repr: renaming the class would make older checkpoints incompatible.
    """

    seed: int
    speeds: list[float]
    masks: dict[str, Any]
    shift: bool
    from_batch: int
    changed: ChangedWaves | None = field(default=None, repr=False)

    def __call__(self, wave: Tensor, key: SampleKey) -> tuple[Tensor, Any, Any]:
        """The changed wave, the masked mel bins and the masked mel frames.

        Raises:
            UnreadableAudio: if a noise recording or an impulse response cannot be read.
        """
        _, n, place = key
        if n < self.from_batch:
            return wave, [], []
        rng = np.random.default_rng([self.seed, n, place])
        speed = self.speeds[int(rng.integers(len(self.speeds)))]
        if speed != 1.0:
            wave = augment.within_window(augment.change_speed(wave, speed), wave)
        if self.shift:
            silence = wave.new_zeros(int(rng.integers(rates.SAMPLES_PER_CODE)))
            wave = augment.within_window(torch.cat([silence, wave]), wave)
        if self.changed is not None:
            wave = self.changed(wave, n, place)
        return wave, *augment.spec_masks(rng, len(wave) // rates.WHISPER_HOP_SAMPLES, **self.masks)


class SpeechSet(Dataset):
    """Utterances by sample key; for an unreadable file, the reason replaces the wave."""

    def __init__(self, utterances: list[Utterance], augmentation: _Augmentation | None) -> None:
        self.utterances, self.augmentation = utterances, augmentation

    def __getitem__(self, key: SampleKey) -> tuple[Utterance, Tensor | str, Any, Any]:
        u = self.utterances[key[0]]
        try:
            wave = io.read(u.audio, rates.TOKENIZER_RATE_HZ, u.offset_sec, u.duration_sec)
            return (u, wave, [], []) if self.augmentation is None else (u, *self.augmentation(wave, key))
        except io.UnreadableAudio as error:
            return u, str(error), [], []


def collate(items: list[tuple[Utterance, Tensor | str, Any, Any]]) -> SpeechBatch:
    """Collates items of a loader into a batch."""
    good = [(u, wave, freq, spans) for u, wave, freq, spans in items if isinstance(wave, Tensor)]
    wave_BT, samples_B = pad_to_codes([wave for _, wave, _, _ in good])
    return SpeechBatch(
        wave_BT=wave_BT,
        samples_B=samples_B,
        ids=[u.id for u, *_ in good],
        texts=[u.text or "" for u, *_ in good],
        freq_masks=[freq for *_, freq, _ in good],
        time_masks=[spans for *_, spans in good],
        skipped=[f"{u.key}\t{reason}" for u, reason, *_ in items if isinstance(reason, str)],
    )
