"""The frozen networks that provide a decoder's training data: a speech tokenizer and a speaker encoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.codec.speaker import SpeakerEncoder, open_speaker, speaker_fingerprint
from lit_moss.codec.tokenizer import SpeechTokenizer
from lit_moss.corpora.manifest import Utterance
from lit_moss.hub.code_cache import code_cache
from lit_moss.hub.recordings import Compute, RecordingCache
from lit_moss.hub.tokenizer import NamedTokenizer


@dataclass(frozen=True)
class CodedRecording:
    """Output of the frozen networks for one utterance.

    Args:
        codes_N: Codes, int32 (N,).
        speaker_S: Speaker vector, float32 (S,); empty without a speaker encoder.
    """

    codes_N: Tensor
    speaker_S: Tensor


class SpeechParts:
    """Speech tokenizer and speaker encoder of a run, opened by name.

    Args:
        speech_tokenizer: Name of the tokenizer, see `open_tokenizer`.
        speaker: Name of the speaker encoder, see `open_speaker`; None: no speaker vectors.
        log_mel: Features of the tokenizer, see `open_tokenizer`.
    """

    def __init__(self, speech_tokenizer: str, speaker: str | None, log_mel: str | None = None) -> None:
        self._named = NamedTokenizer(speech_tokenizer, log_mel)
        self.tokenizer: SpeechTokenizer = self._named.opened
        with torch.random.fork_rng():
            self.speaker: SpeakerEncoder | None = open_speaker(speaker)
        self.fingerprints = {
            "speech_tokenizer": self._named.fingerprint,
            "speaker_encoder": speaker_fingerprint(self.speaker),
        }

    @property
    def speaker_dim(self) -> int:
        """Size of a speaker vector; 0 without a speaker encoder."""
        return self.speaker.dim if self.speaker is not None else 0

    def encode(self, waves: list[Tensor]) -> list[CodedRecording]:
        """Codes and speaker vectors of waves (T,) at 16 kHz."""
        codes = self.tokenizer.encode(waves, rates.TOKENIZER_RATE_HZ)
        return [CodedRecording(c.int(), v) for c, v in zip(codes, self._vectors(waves), strict=True)]

    def _vectors(self, waves: list[Tensor]) -> list[Tensor]:
        if self.speaker is None:
            return [torch.zeros(0) for _ in waves]
        return [self.speaker(wave_T).float() for wave_T in waves]

    def cached(
        self, utterances: Sequence[Utterance], voices: Sequence[Utterance] | None = None
    ) -> list[CodedRecording | None]:
        """Codes and speaker vectors of recordings, cached; None for unreadable recordings.

        Args:
            utterances: The recordings.
            voices: Recordings from which to compute the speaker vectors instead, one per utterance (such as
                other parts of the same file).
        """
        codes = code_cache(self._named).entries(utterances)
        if self.speaker is None:
            vectors = [torch.zeros(0)] * len(codes)
        else:
            entries = self._vector_cache().entries(utterances if voices is None else voices)
            vectors = [torch.zeros(0) if e.values is None else torch.tensor(e.values) for e in entries]
        return [
            None if entry.values is None else CodedRecording(torch.tensor(entry.values), vector_S)
            for entry, vector_S in zip(codes, vectors, strict=True)
        ]

    def _vector_cache(self) -> RecordingCache:
        @contextmanager
        def computing() -> Iterator[Compute]:
            yield self._vectors

        fingerprint = self.fingerprints["speaker_encoder"].replace(":", "-")
        return RecordingCache("speaker_vectors", fingerprint, pa.float32(), computing)
