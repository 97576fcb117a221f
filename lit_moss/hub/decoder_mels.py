"""Mels that a trained decoder generates from the codes of recordings, stored in the cache (see `recordings`).

Shapes: M mel bands, N codes, T mel frames (= 4 N).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.corpora.manifest import Utterance
from lit_moss.errors import UserError
from lit_moss.hub.codec import open_codec
from lit_moss.hub.recordings import Compute, RecordingCache, local_device

if TYPE_CHECKING:
    from lit_moss.codec import Codec


class DecoderMels:
    """Computes decoder mels: recording -> codes -> mel.

    The mels are those of a stream (`Codec.stream`), in the voice of the recording if the decoder was trained
    with a speaker encoder. One second takes 8 kB in the cache.

    Args:
        decoder: Name of the decoder, see `open_codec`.
    """

    def __init__(self, decoder: str) -> None:
        self.decoder = decoder

    @cached_property
    def codec(self) -> "Codec":
        """The codec, opened on first use.

        Raises:
            UserError: if it cannot be opened, or has no speech tokenizer.
        """
        with torch.random.fork_rng():
            codec = open_codec(self.decoder)
        if codec.tokenizer is None:
            raise UserError(
                f"data.decoder {self.decoder} has no speech tokenizer (no model.safetensors in its folder): "
                "expected a run of conf/flow_decoder.yaml, or a whole codec"
            )
        return codec

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of all that determines the mels: tokenizer, speaker encoder, decoder, sampler."""
        from lit_moss.codec.encoder import fingerprint
        from lit_moss.codec.speaker import speaker_fingerprint
        from lit_moss.llm.stages import sha256_of_tensors

        codec = self.codec
        assert codec.tokenizer is not None
        parts = [
            fingerprint(codec.tokenizer.encoder),
            speaker_fingerprint(codec.speaker),
            asdict(codec.flow.config),
            sha256_of_tensors(codec.flow.state_dict()),
            None if codec.voice is None else codec.voice.tolist(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def cached(self, utterances: Sequence[Utterance]) -> list[np.ndarray | None]:
        """Natural-log mel of each utterance, float16 (M, T), cached; None for an unreadable one."""

        @contextmanager
        def decoding() -> Iterator[Compute]:
            self.codec.to(local_device())
            try:
                yield lambda waves: [self.mel(wave_T).half().flatten() for wave_T in waves]
            finally:
                self.codec.to("cpu")

        entries = RecordingCache("decoder_mels", self.fingerprint, pa.float16(), decoding).entries(utterances)
        return [None if e.values is None else e.values.reshape(rates.DECODER_MEL_BINS, -1) for e in entries]

    @torch.no_grad()
    def mel(self, wave_T: Tensor) -> Tensor:
        """Mel (M, T) of samples (T,) at 16 kHz, on the CPU."""
        from lit_moss.codec.flow_network import Prompt
        from lit_moss.codec.flow_stream import HISTORY_CHUNKS

        codec = self.codec
        assert codec.tokenizer is not None
        prompt = codec.no_prompt() if codec.speaker is None else Prompt.none(codec.speaker(wave_T))
        codes_N = codec.tokenizer.encode(wave_T, rates.TOKENIZER_RATE_HZ)
        made_BMT = codec.flow.sample(codes_N[None], prompt=prompt, streaming=True, left_chunks=HISTORY_CHUNKS)
        return made_BMT[0].float().cpu()
