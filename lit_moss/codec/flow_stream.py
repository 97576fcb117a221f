"""Streaming flow decoder: converts codes to mels as they arrive, at constant cost per chunk.

Shapes: N codes, A codes of look-ahead, T frames (= 4 N), M mel bands, D encoder width.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.streams import ClosedByFlush
from lit_moss.codec.conformer import LOOKAHEAD_CODES, EncoderCaches
from lit_moss.codec.flow_network import RATIO, FlowNetwork, Prompt
from lit_moss.codec.flow_sampler import Sampler, fixed_noise
from lit_moss.codec.stream_cache import StreamCache
from lit_moss.codec.unet import Conditions

# Default history of a stream: 10 s, with chunks of 0.4 s.
HISTORY_CHUNKS = 25


class FlowStream(ClosedByFlush):
    """A `Stream` from codes to mel frames; a chunk is decoded once the three codes after it are known.

    The released scheme recomputes the whole prefix for each chunk. Here keys, values and convolution tails of
    the encoder and of all solver steps are cached, so that every chunk costs the same. The results equal
    those of `Flow.sample(streaming=True)` with the same `left_chunks`.

    Args:
        network: The flow decoder, in eval mode.
        sampler: Its solver settings.
        prompt: Voice prompt to continue.
        left_chunks: History in chunks (25 are 10 s), in addition to the prompt, which always stays visible.
            None: unlimited, as in the released masks, at a cost that grows with the stream.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: FlowNetwork,
        sampler: Sampler,
        prompt: Prompt,
        left_chunks: int | None = HISTORY_CHUNKS,
    ) -> None:
        self._network, self._sampler, self.device = network, sampler, network.device
        prompt_codes = len(prompt.codes_N)
        chunks = network.chunks(left_chunks, prompt_codes)
        self._encoder_caches = EncoderCaches.empty(chunks)
        self._solver_caches = [StreamCache(chunks.times(RATIO)) for _ in range(sampler.steps)]
        self._prompt_mel = network.normalised(prompt.mel_MT[None].to(self.device))
        self._speaker_BM = network.speaker_of(prompt)
        self._waiting = prompt.codes_N.to(self.device)
        self._codes = 0  # codes turned into frames, including the prompt's
        self._hidden_frames = RATIO * prompt_codes  # frames of the prompt that are still to be removed
        # Chunks of the prompt whose look-ahead is known are computed before the first code.
        self._advance(last=False)

    @torch.no_grad()
    def push(self, codes_N: Tensor) -> Tensor:
        """Pushes codes, int64 (n,), any number; returns new frames (1, M, t)."""
        self._check_open()
        self._waiting = torch.cat([self._waiting, codes_N.to(self._waiting, non_blocking=True)])
        return self._advance(last=False)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """Ends the utterance and returns the remaining frames (1, M, t)."""
        self._close()
        return self._advance(last=True)

    def copy(self) -> "FlowStream":
        """An independent stream in the same state; the network is shared."""
        return copy.deepcopy(self, {id(module): module for module in self._network.modules()})

    @property
    def bytes(self) -> int:
        """Memory of the state, in bytes."""
        caches = [self._encoder_caches.codes, self._encoder_caches.frames, *self._solver_caches]
        return sum(cache.bytes for cache in caches)

    def _advance(self, last: bool) -> Tensor:
        new = [mel_1MT[:, :, self._cut(mel_1MT.shape[-1]) :] for mel_1MT in self._steps(last)]
        empty = torch.zeros(1, rates.DECODER_MEL_BINS, 0, device=self.device)
        return torch.cat([empty, *new], dim=-1)

    def _cut(self, frames: int) -> int:
        cut = min(frames, self._hidden_frames)
        self._hidden_frames -= cut
        return cut

    @torch.no_grad()
    def _steps(self, last: bool) -> Iterator[Tensor]:
        chunk = self._network.config.chunk_codes
        while len(self._waiting) >= (1 if last else chunk + LOOKAHEAD_CODES):
            codes_N, following = self._waiting[:chunk], self._waiting[chunk:]
            yield self._step(codes_N, following[:LOOKAHEAD_CODES])
            self._waiting = following

    def _step(self, codes_N: Tensor, ahead_A: Tensor) -> Tensor:
        network = self._network
        x_1ND, ahead_1AD = (network.input_embedding(codes.clamp(min=0))[None] for codes in (codes_N, ahead_A))
        mu_1TD = network.encoder.step(x_1ND, ahead_1AD, self._encoder_caches)
        mu_1MT = network.encoder_proj(mu_1TD).float().transpose(1, 2)
        first, frames = RATIO * self._codes, mu_1MT.shape[-1]
        prompt_1MT = torch.zeros_like(mu_1MT)
        given = self._prompt_mel[:, :, first : first + frames]
        prompt_1MT[:, :, : given.shape[-1]] = given
        self._codes += len(codes_N)
        conditions = Conditions(mu_1MT.new_ones(1, 1, frames), mu_1MT, self._speaker_BM, prompt_1MT)
        noise_1MT = fixed_noise(first, frames, mu_1MT.device).to(mu_1MT)
        x_1MT = self._sampler.solve(network.decoder.estimator, noise_1MT, conditions, self._solver_caches)
        return network.restored(x_1MT)
