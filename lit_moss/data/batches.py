"""What the loaders hand out: one dataclass per kind of batch, with the shape, type and unit of every field.

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
        samples_B: Samples of each item without padding, int64 (B,).
        ids: Names of the utterances.
        texts: Normalised transcripts, "" where there is none.
        freq_masks: SpecAugment spans of mel bins per item; empty lists in validation.
        time_masks: SpecAugment spans of mel frames per item; empty lists in validation.
        skipped: Utterances that could not be read, as `key<TAB>reason`.
        samples: `samples_B` as plain numbers, taken from it if not given. Reading them from a GPU would wait
            for it.
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
        lengths_B: Codes of each item, int64 (B,).
        mel_BMT: Natural-log mel, float32 (B, M = 80, T = 4 N), zero-padded.
        speaker_BS: Speaker vectors, float32 (B, S); S is 0 without a speaker encoder.
        ids: Names of the utterances.
        skipped: Utterances that could not be read, as `key<TAB>reason`.
        lengths: `lengths_B` as plain numbers, taken from it if not given. Reading them from a GPU would wait
            for it.
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
    """What a stretch of codes says.

    Args:
        sequence: Sequence of the batch.
        first: Row of the first code.
        stop: Row after the last one.
        ids: Text ids.
        words: Its words in order, as (codes, text ids) of each; their sums are those of the stretch. One
            where the times of words are not known.
    """

    sequence: int
    first: int
    stop: int
    ids: list[int]
    words: list[tuple[int, int]] = []  # noqa: RUF012 - never changed in place


@dataclass
class VocoderBatch:
    """One batch of waves with their mels.

    Args:
        wave_BL: Waveforms, float32 (B, L = 480 T) at 24 kHz, zero-padded.
        mel_BMT: Natural-log mel, float32 (B, M = 80, T), zero-padded.
        frames: Mel frames of each item, plain numbers.
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
        loss_mask_BL: True where the row counts as a target; bool (B, L). A document's first row never does.
        ids: Names of the documents, sequence by sequence; `name+n` is the piece of a long document that
            starts at its row n.
        speech_rows: Number of rows that are codes or eosp.
        lengths: Rows of every document, as plain numbers because reading them from a GPU would wait for it;
            counted if not given.
        text_targets: Number of text rows that count as targets; None if they were not counted.
        speech_targets: Number of speech rows that count as targets; None if they were not counted.
        speech_text: What the speech says, where the documents carry it and `speech_text` is on.
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
        """Always empty: damaged documents are known before a run starts, see `TokenDataModule.skipped`."""
        return []


class SizedIterable(Sized, Iterable[Any], Protocol):
    """Something with a length that can be iterated over."""


class PlainLoader:
    """Batches in a wrapper that is not a `DataLoader`.

    For `predict`, Lightning re-creates the batch sampler of every `DataLoader`, which fails for ours.
    """

    def __init__(self, batches: SizedIterable) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
