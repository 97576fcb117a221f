"""Codes with their mels: manifests -> batches for the flow decoder.

Codes come from a frozen tokenizer, speaker vectors from a frozen encoder; both are computed once and cached
(see `lit_moss.hub.recordings`). Order, buckets, unreadable files and resuming work as in `SpeechDataModule`.

A code stands for 80 ms on a grid that starts with the clip. With `shifts`, the given number of milliseconds
is cut from the start of training clips, so that the same sound has other codes.

Shapes: B items, N codes, T mel frames (= 4 N), M mel bands, S values of a speaker vector.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_moss.audio import io, rates
from lit_moss.audio.features import decoder_mel, resample
from lit_moss.codec.codec import trimmed
from lit_moss.corpora.manifest import Utterance
from lit_moss.data.batches import DecoderBatch
from lit_moss.data.order import SampleKey
from lit_moss.data.speech_data import SpeechDataModule, SpeechSet
from lit_moss.errors import UserError
from lit_moss.hub.speech_parts import CodedRecording, SpeechParts

RATIO = rates.FRAMES_PER_CODE_DECODER
# One code; the mel's reflection padding needs 720 samples.
SHORTEST_SAMPLES = rates.DECODER_SAMPLES_PER_CODE


class DecoderDataModule(SpeechDataModule):
    """Manifests -> `DecoderBatch`es.

    Args:
        train: Manifests to train on: paths, or `embedded:everyday-en`; transcripts are not needed.
        validation: Manifests to validate on.
        weights: Number of times an epoch contains each manifest of `train`, e.g. [1.0, 0.5]; empty: once
            each.
        speech_tokenizer: The frozen tokenizer: `embedded:whisper-tiny-kmeans`, a checkpoint, runs/NAME, a
            folder, or a hub id.
        log_mel: Features of the speech tokenizer, `causal` or `whisper`. None: as stated by the tokenizer,
            see `SpeechTokenizer.from_pretrained`.
        speaker: Speaker encoder: `embedded:resemblyzer`, a CAM++ .onnx file, or `none`.
        cache: Cache codes and speaker vectors on disk; otherwise the loader processes compute them when
            needed.
        batch_sec: Audio budget of a training batch in seconds, padding included.
        validation_batch_sec: Audio budget of a validation batch in seconds, padding included.
        max_sec: Maximum utterance length in seconds; longer utterances are left out, counted and named.
        min_sec: Minimum utterance length in seconds.
        seed: Seed of the order.
        buckets: Maximum number of length buckets.
        workers: Number of loader processes per rank; 0: load in the training process.
        max_bad_share: Fraction of unreadable utterances above which the run stops.
        shifts: Milliseconds, 0 to 79, to cut from the start of a training clip; one is drawn per sample. [0,
            20, 40, 60] gives each clip four sets of codes, all cached. [0] cuts nothing.
    """

    def __init__(
        self,
        train: list[str] | None = None,
        validation: list[str] | None = None,
        weights: list[float] | None = None,
        speech_tokenizer: str = "embedded:whisper-tiny-kmeans",
        log_mel: Literal["causal", "whisper"] | None = None,
        speaker: str | None = None,
        cache: bool = True,
        batch_sec: float = 40.0,
        validation_batch_sec: float = 80.0,
        max_sec: float = 20.0,
        min_sec: float = 0.5,
        seed: int = 1,
        buckets: int = 16,
        workers: int = 1,
        max_bad_share: float = 0.01,
        shifts: list[int] | None = None,
    ) -> None:
        super().__init__(
            train, validation, weights, batch_sec, validation_batch_sec, max_sec, min_sec, seed, buckets,
            workers, freq_masks=0, max_bad_share=max_bad_share,
        )  # fmt: skip
        self.speech_tokenizer, self.log_mel, self.speaker, self.cache = (
            speech_tokenizer,
            log_mel,
            speaker,
            cache,
        )
        self.shifts = [0] if shifts is None else list(shifts)
        code_ms = round(1000 * rates.SECONDS_PER_CODE)
        if not self.shifts or any(not 0 <= ms < code_ms for ms in self.shifts):
            raise UserError(
                f"data.shifts is {self.shifts}, expected milliseconds from 0 to {code_ms - 1}: "
                "for example [0, 20, 40, 60]"
            )
        if any(self.shifts) and min_sec < (code_ms + max(self.shifts)) / 1000:
            raise UserError(
                f"data.min_sec is {min_sec} and data.shifts {self.shifts}: the shortest clip would keep less "
                f"than a code of {code_ms} ms; raise min_sec"
            )
        self._frozen: SpeechParts | None = None

    @property
    def frozen(self) -> SpeechParts:
        """The speech tokenizer and speaker encoder, opened on first use."""
        if self._frozen is None:
            self._frozen = SpeechParts(self.speech_tokenizer, self.speaker, self.log_mel)
        return self._frozen

    def _make_set(self, utterances: list[Utterance], augmentation: Any) -> "_DecoderSet":
        parts = []
        for ms in [0] if augmentation is None else self.shifts:
            cut = [_shifted(u, ms) for u in utterances] if ms else utterances
            parts.append((cut, self.frozen.cached(cut, voices=utterances) if self.cache else None))
        return _DecoderSet(utterances, self.frozen, parts, self.seed)

    def _with_texts(self, manifest: Path, utterances: list[Utterance]) -> list[Utterance]:
        return utterances  # transcripts are not used

    def _to_learn_from(
        self, utterances: list[Utterance], weights: list[float]
    ) -> tuple[list[Utterance], list[float]]:
        return utterances, weights

    def statistics(self, utterances: int = 48) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of the log-mel bands, (80,) each, and the mean speaker vector (S,),
        over evenly spaced training utterances."""
        assert isinstance(self._train_set, _DecoderSet)
        size = len(self._train_set.utterances)
        items = [self._train_set[(n, 0, 0)] for n in range(0, size, max(1, size // utterances))]
        readable = [item for item in items if len(item) == 4]
        if not readable:
            raise UserError(
                f"none of {len(items)} training utterances can be read, expected some for the mean mel: "
                f"check the paths in {', '.join(self.train)}"
            )
        mel_MT = torch.cat([item[2] for item in readable], dim=1)
        voice_S = torch.stack([item[3] for item in readable]).mean(dim=0)
        return mel_MT.mean(dim=1), mel_MT.std(dim=1, correction=0), voice_S

    def collate_function(self) -> Callable[[list[Any]], Any]:
        return collate

    def fingerprints(self) -> dict[str, str]:
        own = super().fingerprints() | self.frozen.fingerprints
        if self.shifts != [0]:
            text = f"{own['augmentation']} {self.shifts}"
            own["augmentation"] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        names = {"speech_tokenizer": self.speech_tokenizer, "speaker_encoder": str(self.speaker)}
        for key, now in self.frozen.fingerprints.items():
            saved = state_dict["fingerprints"].get(key)
            if saved != now:
                raise UserError(
                    f"the checkpoint was trained on codes of another {key.replace('_', ' ')} (fingerprint "
                    f"{saved}; {names[key]} with log_mel {self.frozen.tokenizer.config.log_mel} has {now}): "
                    "give that of the training, or start a new run"
                )
        super().load_state_dict(state_dict)


def _shifted(utterance: Utterance, ms: int) -> Utterance:
    """The utterance without its first `ms` milliseconds."""
    duration_sec = utterance.duration_sec
    return replace(
        utterance,
        offset_sec=utterance.offset_sec + ms / 1000,
        duration_sec=None if duration_sec is None else duration_sec - ms / 1000,
    )


class _DecoderSet(SpeechSet):
    """Utterances by sample key: codes, mel and speaker vector, or the reason why the file cannot be read.

    Args:
        utterances: Utterances of the manifests.
        frozen: Tokenizer and speaker encoder; compute what is not cached.
        parts: For each shift, the cut utterances and their cached values.
        seed: Seed of the choice of shift, together with batch number and position in the batch.
    """

    def __init__(
        self,
        utterances: list[Utterance],
        frozen: SpeechParts,
        parts: Sequence[tuple[Sequence[Utterance], Sequence[CodedRecording | None] | None]],
        seed: int,
    ) -> None:
        super().__init__(utterances, None)
        self._frozen, self._parts, self._seed = frozen, parts, seed

    def __getitem__(self, key: SampleKey) -> Any:
        index, n, place = key
        shift = 0
        if len(self._parts) > 1:
            shift = int(np.random.default_rng([self._seed, n, place]).integers(len(self._parts)))
        cut, all_coded = self._parts[shift]
        u, part = self.utterances[index], cut[index]
        try:
            wave24_T = io.read(
                part.audio, rates.DECODER_RATE_HZ, part.offset_sec, part.duration_sec, channel=part.channel
            )
        except io.UnreadableAudio as error:
            return u, _too_short(u) or str(error)
        if len(wave24_T) < SHORTEST_SAMPLES:
            return u, f"{u.audio}: {len(wave24_T) / rates.DECODER_RATE_HZ:.3f} s, shorter than a code"
        coded = all_coded[index] if all_coded is not None else None
        if coded is None:
            wave16_T = resample(wave24_T, rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ)
            (coded,) = self._frozen.encode([wave16_T])
        return u, *trimmed(coded.codes_N, decoder_mel(wave24_T[None])[0]), coded.speaker_S


def collate(items: list[Any]) -> DecoderBatch:
    """Collates items of a loader into a batch."""
    good = [item for item in items if len(item) == 4]
    lengths_B = torch.tensor([len(codes) for _, codes, _, _ in good], dtype=torch.long)
    longest = int(lengths_B.max()) if good else 0
    mel_BMT = torch.zeros(len(good), rates.DECODER_MEL_BINS, RATIO * longest)
    for row, (_, _, mel, _) in zip(mel_BMT, good, strict=True):
        row[:, : mel.shape[-1]] = mel
    return DecoderBatch(
        codes_BN=pad_sequence([codes.long() for _, codes, _, _ in good], batch_first=True)
        if good
        else torch.zeros(0, 0, dtype=torch.long),
        lengths_B=lengths_B,
        mel_BMT=mel_BMT,
        speaker_BS=torch.stack([vector for *_, vector in good]) if good else torch.zeros(0, 0),
        ids=[u.id for u, *_ in good],
        skipped=[f"{item[0].key}\t{item[1]}" for item in items if len(item) == 2],
    )


def _too_short(utterance: Utterance) -> str:
    """The reason to skip a file that is shorter than one code, whatever its manifest says; "" if it is
    not."""
    try:
        seconds = io.info(utterance.audio, probe=False).duration_sec
    except io.UnreadableAudio:
        return ""
    short = seconds < SHORTEST_SAMPLES / rates.DECODER_RATE_HZ
    return f"{utterance.audio}: {seconds:.3f} s, shorter than a code" if short else ""
