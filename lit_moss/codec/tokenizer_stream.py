"""Streaming speech tokenizer: converts samples at 16 kHz to codes as they arrive."""

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.features import CausalLogMel
from lit_moss.audio.precision import full_precision
from lit_moss.audio.streams import ClosedByFlush
from lit_moss.audio.waves import check_wave
from lit_moss.codec.encoder import CausalEncoder, EncoderState
from lit_moss.codec.nearest import Float64Encoder, check_codes_known, decide


class TokenizerStream(ClosedByFlush):
    """A `Stream` from samples (T,) at 16 kHz to codes; a code is returned when its 80 ms are complete.

    Every 30 s a new segment starts with an empty state, as offline. Features are computed by `CausalLogMel`.
    Memory is limited to one segment: keys and values of attention. With `exact` everything is computed in
    float64, so no push recomputes earlier frames; its only transfer to the host is that of the codes.

    Args:
        encoder: The network.
        exact: The network in float64, for the same codes as `SpeechTokenizer.encode`. None: computes in
            float32.
    """

    def __init__(self, encoder: CausalEncoder, exact: Float64Encoder | None) -> None:
        self._exact = exact
        # Not in the first push: making the float64 copy takes a second for the released tokenizer.
        self._encoder = encoder if exact is None else exact.network
        self._waiting = torch.zeros(0, dtype=torch.float32, device="cpu")
        self._limit = rates.segment_samples(encoder.config.max_source_positions)
        self._state = EncoderState()
        self._new_segment()

    def _new_segment(self) -> None:
        self._mel = CausalLogMel(self._encoder.config.num_mel_bins)
        self._state.restart()
        self._done = 0  # samples of this segment that are already encoded

    def push(self, samples: Tensor) -> Tensor:
        """Pushes samples (T,) at 16 kHz, any number; returns new codes, int64 (n,).

        Raises:
            ValueError: if the samples are invalid, see `check_wave`.
        """
        self._check_open()
        self._waiting = torch.cat([self._waiting, check_wave(samples)])
        return self._encode_waiting()

    def flush(self) -> Tensor:
        """Ends the recording, zero-padding an incomplete code; returns the last codes, int64 (0 or 1,)."""
        self._close()
        short = -len(self._waiting) % rates.SAMPLES_PER_CODE
        self._waiting = torch.cat([self._waiting, torch.zeros(short, device="cpu")])
        return self._encode_waiting()

    @torch.no_grad()
    def _encode_waiting(self) -> Tensor:
        """Encodes the waiting samples, as far as they form complete codes."""
        codes = [torch.zeros(0, dtype=torch.long, device="cpu")]
        while len(self._waiting) >= rates.SAMPLES_PER_CODE:
            whole = len(self._waiting) // rates.SAMPLES_PER_CODE * rates.SAMPLES_PER_CODE
            count = min(whole, self._limit - self._done)
            codes.append(self._encode(self._waiting[:count]))
            self._waiting = self._waiting[count:]
        return torch.cat(codes)

    def _encode(self, samples: Tensor) -> Tensor:
        encoder = self._encoder
        wave_BT = samples[None].to(encoder.codebook.weight)
        with full_precision(wave_BT.device):
            pooled_BND = encoder.pool(encoder(self._mel(wave_BT), self._state))
            if self._exact is not None:
                codes_BN = self._exact.nearest(pooled_BND)
            else:
                codes_BN, _ = decide(pooled_BND, encoder.codebook.weight)
        self._done += len(samples)
        if self._done == self._limit:
            self._new_segment()
        return check_codes_known(codes_BN[0].cpu())
