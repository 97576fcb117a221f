"""Speech with transcripts for the tokenizer: manifests -> batches of padded waveforms.

Their order is a function (see `order`), not a state.
Shapes: B items, T samples at 16 kHz (a whole number of codes).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_moss.audio import io, rates
from lit_moss.corpora.manifest import Utterance, fingerprint, read_manifest
from lit_moss.data import augment
from lit_moss.data.order import BatchOrder, OrderedBatchSampler, SampleKey
from lit_moss.data.transcripts import DEFAULT_CHARSET, Charset, normalise, report_losses
from lit_moss.errors import UserError


@dataclass
class SpeechBatch:
    """One batch of speech.

    Args:
        wave_BT: Waveforms, float32 (B, T) in [-1, 1] at 16 kHz, zero-padded to whole codes.
        samples_B: Samples of each item without padding, int64 (B,).
        ids: Names of the utterances.
        texts: Normalised transcripts, "" where there is none.
        freq_masks: SpecAugment spans of mel bins per item; empty lists in validation.
        time_masks: The same of mel frames.
        skipped: Utterances that could not be read: `path: reason`.
        samples: `samples_B` as plain numbers, taken from it if not given: asking a GPU would wait for it.
    """

    wave_BT: Tensor
    samples_B: Tensor
    ids: list[str]
    texts: list[str]
    freq_masks: list[list[tuple[int, int]]] = field(default_factory=list)
    time_masks: list[list[tuple[int, int]]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.samples:
            self.samples = self.samples_B.tolist()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def audio_sec(self) -> float:
        """Seconds of audio, padding not counted."""
        return sum(self.samples) / rates.TOKENIZER_RATE_HZ


class SpeechDataModule(LightningDataModule):
    """Manifests -> `SpeechBatch`es.

    Length buckets, SpecAugment, speed perturbation; unreadable files are skipped by name.

    Args:
        train: Manifests to learn from: paths, or `embedded:everyday-en` (a corpus made on first use).
        validation: Manifests to validate on; `embedded:everyday-en` is its held-out part.
        weights: How often an epoch holds each manifest of `train`, e.g. [1.0, 0.5]; all once if empty.
        batch_sec: Audio budget of a training batch in seconds, padding included.
        validation_batch_sec: The same in validation.
        max_sec: Longest utterance in seconds; 30 is Whisper's window. Longer ones are left out, counted and
            named (their transcript cannot be cut with them): cut them with `prepare manifest --max-sec`.
        min_sec: Shortest utterance in seconds; shorter ones are left out likewise.
        seed: Seed of order and augmentation.
        buckets: Most length buckets.
        workers: Loader processes per rank; 0 loads in the training process.
        freq_masks: SpecAugment: frequency masks per item.
        freq_mask_bins: Widest frequency mask in mel bins.
        time_masks: SpecAugment: time masks per item.
        time_mask_share: Longest time mask as a share of the item.
        mel_bins: Mel bins the masks are drawn for; the model's `num_mel_bins`.
        speeds: Speed factors to choose from, e.g. [0.9, 1.0, 1.1]; [1.0] changes nothing.
        shift: Put 0 to 80 ms of silence before the item, so that the grid of codes falls differently on it
            each time.
        augment_from_batch: Batches before this one are left plain: CTC leaves its plateau later under
            augmentation (not within 260 steps on LJ Speech with all of it on, in 100 with frequency masks
            alone).
        max_bad_share: Share of unreadable utterances above which a run stops.
        charset: Letters that transcripts keep: latin_chinese (a-z without accents, digits, Chinese), or auto
            (those of every script that the manifests use), see `lit_moss.data.transcripts`.
        max_lost_share: Share of a manifest's letters that `charset` may drop, 0 to 1; above it the run stops.
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
    ) -> None:
        super().__init__()
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
        self.batch_sec, self.validation_batch_sec = batch_sec, validation_batch_sec
        self.max_sec, self.min_sec = max_sec, min_sec
        self.seed, self.buckets, self.workers = seed, buckets, workers
        self.speeds, self.max_bad_share = speeds, max_bad_share
        self.charset: Charset = charset
        self.max_lost_share = max_lost_share
        masks = {
            "bins": mel_bins,
            "freq_masks": freq_masks,
            "freq_bins": freq_mask_bins,
            "time_masks": time_masks,
            "time_share": time_mask_share,
        }
        self.augmentation = _Augmentation(seed, speeds, masks, shift, augment_from_batch)
        self.next_batch = 0  # batches consumed by all ranks together; part of the checkpoint
        self.skipped: dict[str, str] = {}  # utterance's key -> reason, over the whole run
        self._unread = 0  # of them, those in neither set: their length was to be read from the file
        self._train_set: _SpeechSet | None = None
        self._validation_set: _SpeechSet | None = None
        self.order: BatchOrder | None = None

    # --- set-up ---------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        for name in self.train + self.validation:
            self._locate(name, "train")

    def setup(self, stage: str) -> None:
        if self._validation_set is None and self.validation:
            found = self._read(
                [self._locate(n, "validation") for n in self.validation], [1.0] * len(self.validation)
            )
            self._validation_set = self._make_set(found[0], None)
        if stage == "fit" and self._train_set is None:
            if not self.train:
                raise UserError(
                    "data.train is empty: expected at least one manifest, e.g. [embedded:everyday-en]"
                )
            utterances, weights = self._read([self._locate(n, "train") for n in self.train], self.weights)
            self._train_set = self._make_set(utterances, self.augmentation)
            slowest = min(self.speeds)
            longer_sec = rates.SECONDS_PER_CODE if self.augmentation.shift else 0.0
            lengths = [(u.duration_sec or 0.0) / slowest + longer_sec for u in utterances]
            self.order = BatchOrder(lengths, self.batch_sec, self.seed, weights, self.buckets)
            rank_zero_info(
                f"train: {len(utterances)} utterances, "
                f"{sum(u.duration_sec or 0.0 for u in utterances) / 60:.1f} min, "
                f"{self.order.batches_per_epoch} batches an epoch"
            )

    def _make_set(self, utterances: list[Utterance], augmentation: "_Augmentation | None") -> "_SpeechSet":
        """What a loader reads; other stages make other items of the same utterances."""
        return _SpeechSet(utterances, augmentation)

    @staticmethod
    def _collate(items: list[Any]) -> Any:
        return _collate(items)

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
        """Utterances within the limits, with durations; the others are reported by name."""
        kept, kept_weights, dropped = [], [], []
        for manifest, weight in zip(manifests, weights, strict=True):
            for utterance in self._with_texts(manifest, read_manifest(manifest)):
                if utterance.duration_sec is None:
                    try:
                        header = io.info(utterance.audio, probe=False)
                        seconds = io.span_sec(utterance.audio, header, utterance.offset_sec, None)
                    except io.UnreadableAudio as error:
                        self._unread += utterance.key not in self.skipped
                        self.skipped[utterance.key] = str(error)
                        continue
                    utterance = replace(utterance, duration_sec=seconds)
                seconds = utterance.duration_sec or 0.0
                if self.min_sec <= seconds <= self.max_sec:
                    kept.append(utterance)
                    kept_weights.append(weight)
                else:
                    dropped.append(f"{utterance.id} ({seconds:.1f} s)")
        if dropped:
            rank_zero_info(
                f"{', '.join(map(str, manifests))}: {len(dropped)} utterances outside {self.min_sec} to "
                f"{self.max_sec} s left out: {', '.join(dropped[:5])}{', …' if len(dropped) > 5 else ''}"
            )
        if not kept:
            raise UserError(
                f"{', '.join(map(str, manifests))}: no utterance of {self.min_sec} to {self.max_sec} s"
                + (
                    f", {len(self.skipped)} cannot be read: {next(iter(self.skipped.values()))}"
                    if self.skipped
                    else ""
                )
            )
        return kept, kept_weights

    def _with_texts(self, manifest: Path, utterances: list[Utterance]) -> list[Utterance]:
        """The same with normalised transcripts, "" where there is none; says which letters they lose.

        Raises:
            UserError: if that is more than `max_lost_share`.
        """
        texts = [u.text or "" for u in utterances]
        if note := report_losses(texts, manifest, self.charset, self.max_lost_share):
            rank_zero_info(note)
        return [
            replace(u, text=normalise(text, self.charset)) for u, text in zip(utterances, texts, strict=True)
        ]

    @property
    def utterances(self) -> int:
        """Utterances of training and validation together."""
        return self._unread + sum(
            len(part.utterances) for part in (self._train_set, self._validation_set) if part is not None
        )

    def fingerprints(self) -> dict[str, str]:
        """What a run has seen, for its record and for a resume: data, and the order they come in."""
        found = {"data": fingerprint([self._locate(n, "train") for n in self.train])} if self.train else {}
        if self.validation:
            found["validation"] = fingerprint([self._locate(n, "validation") for n in self.validation])
        found["augmentation"] = hashlib.sha256(repr(self.augmentation).encode()).hexdigest()[:16]
        return found | ({"order": self.order.fingerprint} if self.order else {})

    def probe_loader(self, batches: int) -> DataLoader:
        """The next `batches` training batches of this rank, unaugmented, for the codebook's k-means start.

        Which ones follows from `next_batch` alone, so that a resumed run sees the same.
        """
        assert self.order is not None and self._train_set is not None
        rank, ranks = self._rank()
        plain = _SpeechSet(self._train_set.utterances, None)
        keys = [self.order.keys(self.next_batch + rank + i * ranks) for i in range(batches)]
        return self._loader(plain, keys)

    def train_texts(self) -> list[str]:
        """Normalised transcripts of the training utterances, for the vocabulary."""
        if self._train_set is None:
            raise RuntimeError("call setup('fit') first")
        return [u.text or "" for u in self._train_set.utterances]

    # --- loaders --------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        assert self.order is not None and self._train_set is not None
        rank, ranks = self._rank()
        return self._loader(self._train_set, OrderedBatchSampler(self.order, self.next_batch, rank, ranks))

    def val_dataloader(self) -> DataLoader | list[Any]:
        if self._validation_set is None:
            return []
        rank, ranks = self._rank()
        return self._loader(self._validation_set, self._in_length_order(self._validation_set, rank, ranks))

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> "_AsItIs":
        return _AsItIs(self.val_dataloader())

    def _in_length_order(self, speech: "_SpeechSet", rank: int, ranks: int) -> list[list[SampleKey]]:
        lengths = [u.duration_sec or 0.0 for u in speech.utterances]
        batches: list[list[SampleKey]] = [[]]
        for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
            if batches[-1] and (len(batches[-1]) + 1) * lengths[index] > self.validation_batch_sec:
                batches.append([])
            batches[-1].append((index, 0, 0))
        # The same number on every rank, filled up with empty batches: DDP's forward talks to the other ranks.
        batches += [[]] * (-len(batches) % ranks)
        return batches[rank::ranks]

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, speech: "_SpeechSet", sampler: Any) -> DataLoader:
        return DataLoader(
            speech,
            batch_sampler=sampler,
            num_workers=self.workers,
            collate_fn=self._collate,
            pin_memory=torch.cuda.is_available(),
            # A hung worker is an error within a minute, not a silent wait.
            timeout=60 if self.workers else 0,
            # Own generator: making an iterator must not draw from the training's random numbers.
            generator=torch.Generator().manual_seed(self.seed),
        )

    # --- resume ---------------------------------------------------------------------------------------------

    def advance(self, batches: int) -> None:
        self.next_batch += batches

    def state_dict(self) -> dict[str, Any]:
        return {
            "next_batch": self.next_batch,
            "skipped": dict(self.skipped),
            "fingerprints": self.fingerprints(),
            "ranks": self._rank()[1],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved, own = state_dict["fingerprints"], self.fingerprints()
        if self.order is None:  # validation alone does not continue an order
            return
        for key in ("data", "order", "augmentation"):
            if key in own and saved.get(key) != own[key]:
                raise UserError(
                    f"the checkpoint was trained on other {key} (fingerprint {saved.get(key)}, now "
                    f"{own[key]}): resume with the same manifests and options, or start a new run"
                )
        self.next_batch = state_dict["next_batch"]
        self.skipped = dict(state_dict["skipped"])


class _AsItIs:
    """A loader that Lightning does not rebuild.

    For `predict` it makes batch samplers anew, and cannot with ours.
    """

    def __init__(self, loader: DataLoader | list[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[SpeechBatch]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)


@dataclass(frozen=True)
class _Augmentation:
    """All that is random about a sample, drawn from (seed, batch number, place in the batch)."""

    seed: int
    speeds: list[float]
    masks: dict[str, Any]
    shift: bool
    from_batch: int

    def __call__(self, wave: Tensor, key: SampleKey) -> tuple[Tensor, Any, Any]:
        """Changed wave, masked bins, masked frames."""
        _, n, place = key
        if n < self.from_batch:
            return wave, [], []
        rng = np.random.default_rng([self.seed, n, place])
        speed = self.speeds[int(rng.integers(len(self.speeds)))]
        if speed != 1.0:
            wave = augment.change_speed(wave, speed)
        if self.shift:
            wave = torch.cat([wave.new_zeros(int(rng.integers(rates.SAMPLES_PER_CODE))), wave])
        return wave, *augment.spec_masks(rng, len(wave) // rates.WHISPER_HOP_SAMPLES, **self.masks)


class _SpeechSet(Dataset):
    """Utterances by sample key; an unreadable one comes as its reason, not as an exception."""

    def __init__(self, utterances: list[Utterance], augmentation: _Augmentation | None) -> None:
        self.utterances, self.augmentation = utterances, augmentation

    def __getitem__(self, key: SampleKey) -> tuple[Utterance, Tensor | str, Any, Any]:
        u = self.utterances[key[0]]
        try:
            wave = io.read(u.audio, rates.TOKENIZER_RATE_HZ, u.offset_sec, u.duration_sec)
        except io.UnreadableAudio as error:
            return u, str(error), [], []
        return (u, wave, [], []) if self.augmentation is None else (u, *self.augmentation(wave, key))


def _collate(items: list[tuple[Utterance, Tensor | str, Any, Any]]) -> SpeechBatch:
    good = [(u, wave, freq, spans) for u, wave, freq, spans in items if isinstance(wave, Tensor)]
    wave_BT, samples_B = augment.pad_to_codes([wave for _, wave, _, _ in good])
    return SpeechBatch(
        wave_BT=wave_BT,
        samples_B=samples_B,
        ids=[u.id for u, *_ in good],
        texts=[u.text or "" for u, *_ in good],
        freq_masks=[freq for *_, freq, _ in good],
        time_masks=[spans for *_, spans in good],
        skipped=[f"{u.key}\t{reason}" for u, reason, *_ in items if isinstance(reason, str)],
    )
