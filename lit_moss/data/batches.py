"""Batches that the loaders yield: one dataclass per kind, with shape, type and unit of every field.

Shapes: B items, T samples at 16 kHz (a whole number of codes), N codes, L rows.
"""

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lit_moss.audio import rates


@dataclass
class SpeechBatch:
    """One batch of speech.

    Args:
        wave_BT: Waveforms, float32 (B, T) in [-1, 1] at 16 kHz, zero-padded to whole codes.
        samples_B: Number of samples of each item without padding, int64 (B,).
        ids: Names of the utterances.
        texts: Normalised transcripts, "" if there is none.
        freq_masks: SpecAugment spans of mel bins per item; empty lists in validation.
        time_masks: SpecAugment spans of mel frames per item; empty lists in validation.
        skipped: Utterances that could not be read, as `key<TAB>reason`.
        samples: `samples_B` as Python ints. Default: computed from it. Avoids waiting for a GPU to read them.
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
        """Seconds of audio without padding."""
        return sum(self.samples) / rates.TOKENIZER_RATE_HZ


@dataclass
class DecoderBatch:
    """One batch of codes with their mel.

    Args:
        codes_BN: int64 (B, N), zero-padded.
        lengths_B: Number of codes of each item, int64 (B,).
        mel_BMT: Natural-log mel, float32 (B, M = 80, T = 4 N), zero-padded.
        speaker_BS: Speaker vectors, float32 (B, S); S is 0 without a speaker encoder.
        ids: Names of the utterances.
        skipped: Utterances that could not be read, as `key<TAB>reason`.
        lengths: `lengths_B` as Python ints. Default: computed from it. Avoids waiting for a GPU to read them.
    """

    codes_BN: Tensor
    lengths_B: Tensor
    mel_BMT: Tensor
    speaker_BS: Tensor
    ids: list[str]
    skipped: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.lengths:
            self.lengths = self.lengths_B.tolist()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def audio_sec(self) -> float:
        """Seconds of audio without padding."""
        return sum(self.lengths) * rates.SECONDS_PER_CODE


class SpeechText(NamedTuple):
    """The text of a stretch of codes.

    Args:
        sequence: Index of the sequence in the batch.
        first: Row of the first code.
        stop: Row after the last code.
        ids: Text ids of what is said.
        words: Words in order, as (number of codes, number of text ids) each; they add up to the whole
            stretch. A single entry if word times are unknown.
    """

    sequence: int
    first: int
    stop: int
    ids: list[int]
    words: list[tuple[int, int]] = []  # noqa: RUF012 - never changed in place


@dataclass
class VocoderBatch:
    """One batch of waveforms with their mels.

    Args:
        wave_BL: Waveforms, float32 (B, L = 480 T) at 24 kHz, zero-padded.
        mel_BMT: Natural-log mel, float32 (B, M = 80, T), zero-padded.
        frames: Number of mel frames of each item, as Python ints.
        ids: Names of the utterances.
        skipped: Utterances that could not be read, as `key<TAB>reason`.
    """

    wave_BL: Tensor
    mel_BMT: Tensor
    frames: list[int]
    ids: list[str]
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def audio_sec(self) -> float:
        """Seconds of audio without padding."""
        return sum(self.frames) * rates.DECODER_HOP_SAMPLES / rates.DECODER_RATE_HZ


@dataclass
class TokenBatch:
    """Packed sequences.

    Args:
        rows_BL: Rows, int64 (B, L).
        document_ids_BL: Number of the document within its sequence, -1 for filler; int32 (B, L).
        loss_mask_BL: True where the row counts as a target; bool (B, L). False at a document's first row.
        ids: Names of the documents, in order; `name+n` is a piece of a long document, starting at its row n.
        speech_rows: Number of rows that are codes or eosp.
        lengths: Number of rows of every document, as Python ints, to avoid waiting for a GPU. Default:
            counted.
        text_targets: Number of text rows that count as targets; None: not counted.
        speech_targets: Number of speech rows that count as targets; None: not counted.
        speech_text: Text of the speech, if the documents contain it and `speech_text` is on.
    """

    rows_BL: Tensor
    document_ids_BL: Tensor
    loss_mask_BL: Tensor
    ids: list[str]
    speech_rows: int
    lengths: list[int] = field(default_factory=list)
    text_targets: int | None = None
    speech_targets: int | None = None
    speech_text: list[SpeechText] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.lengths:
            for ids_L in self.document_ids_BL:
                self.lengths += torch.bincount(ids_L[ids_L >= 0].long()).tolist()

    def __len__(self) -> int:
        return len(self.rows_BL)

    @property
    def real_rows(self) -> int:
        """Number of rows that are not filler."""
        return sum(self.lengths)

    @property
    def audio_sec(self) -> float:
        """Seconds of speech."""
        return self.speech_rows * rates.SECONDS_PER_CODE

    @property
    def skipped(self) -> list[str]:
        """Always empty: damaged documents are found before a run starts, see `TokenDataModule.skipped`."""
        return []


class SizedIterable(Sized, Iterable[Any], Protocol):
    """An iterable with a length."""


class PlainLoader:
    """Wraps batches in a loader that is not a `DataLoader`.

    For `predict`, Lightning re-creates the batch sampler of every `DataLoader`, which fails with ours.
    """

    def __init__(self, batches: SizedIterable) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
