"""The flow as a stream: codes as they come -> mel, every chunk at the same cost.

Shapes: N codes, A codes of look-ahead, T frames (= 4 N), M mel bands, D encoder width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.codec.conformer import LOOKAHEAD_CODES
from lit_moss.codec.flow import HISTORY_CHUNKS, RATIO, Flow, Prompt, fixed_noise
from lit_moss.codec.stream_cache import StreamCache


class FlowStream:
    """Codes as they come -> mel frames, a chunk at a time, each as soon as three codes behind it are known.

    The released scheme computes the whole prefix again for each chunk; here keys, values and convolution
    tails of the encoder and of all solver steps stay, so that a chunk costs the same wherever it lies. The
    numbers are those of `Flow.sample(streaming=True)` with the same `left_chunks`.

    Args:
        flow: The decoder, in eval mode.
        prompt: Speech to continue.
        left_chunks: History in chunks (25 are 10 s); the prompt stays in sight besides. None keeps all: the
            released masks, at a cost that grows with the stream.
    """

    @torch.no_grad()
    def __init__(self, flow: Flow, prompt: Prompt, left_chunks: int | None = HISTORY_CHUNKS) -> None:
        self._flow, self.device = flow, flow.input_embedding.weight.device
        kept = len(prompt.codes_N)
        config = flow.config
        chunk = config.chunk_codes * RATIO
        self._encoder = flow.encoder.caches(left_chunks, kept)
        self._solver = [StreamCache(chunk, left_chunks, RATIO * kept) for _ in range(config.steps)]
        self._prompt_mel, self._speaker_BM = prompt.mel_MT[None].to(self.device), flow.speaker_of(prompt)
        self._waiting = prompt.codes_N.to(self.device)
        self._codes = 0  # codes turned into frames, the prompt's included
        self._hidden_frames = RATIO * kept  # frames of the prompt still to be cut off
        self._closed = False
        # Chunks that lie in the prompt with their look-ahead need no code: before the first one comes.
        self._advance(last=False)

    @torch.no_grad()
    def push(self, codes_N: Tensor) -> Tensor:
        """Next codes, int64 (n,), any number -> new frames (1, M, t)."""
        if self._closed:
            raise RuntimeError("this stream was flushed: make a new one")
        self._waiting = torch.cat([self._waiting, codes_N.to(self._waiting, non_blocking=True)])
        return self._advance(last=False)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """Ends the utterance: the frames left, (1, M, t)."""
        if self._closed:
            raise RuntimeError("this stream was flushed: make a new one")
        self._closed = True
        return self._advance(last=True)

    @property
    def bytes(self) -> int:
        """Memory that the state holds."""
        caches = [self._encoder.codes, self._encoder.frames, *self._solver]
        return sum(cache.bytes for cache in caches)

    def _advance(self, last: bool) -> Tensor:
        found = [step[:, :, self._cut(step.shape[-1]) :] for step in self._steps(last)]
        empty = torch.zeros(1, rates.DECODER_MEL_BINS, 0, device=self.device)
        return torch.cat([empty, *found], dim=-1)

    def _cut(self, frames: int) -> int:
        cut = min(frames, self._hidden_frames)
        self._hidden_frames -= cut
        return cut

    @torch.no_grad()
    def _steps(self, last: bool) -> Iterator[Tensor]:
        chunk = self._flow.config.chunk_codes
        while len(self._waiting) >= (1 if last else chunk + LOOKAHEAD_CODES):
            codes, rest = self._waiting[:chunk], self._waiting[chunk:]
            ahead = rest[:LOOKAHEAD_CODES]
            yield self._step(codes, ahead)
            self._waiting = rest

    def _step(self, codes_N: Tensor, ahead_A: Tensor) -> Tensor:
        flow = self._flow
        x_1ND, ahead_1AD = (
            flow.input_embedding(codes.clamp(min=0))[None] for codes in (codes_N, ahead_A)
        )  # fmt: skip
        mu_1TD = flow.encoder.step(x_1ND, ahead_1AD, self._encoder)
        mu_1MT = flow.encoder_proj(mu_1TD).float().transpose(1, 2)
        first, frames = RATIO * self._codes, mu_1MT.shape[-1]
        prompt_1MT = torch.zeros_like(mu_1MT)
        given = self._prompt_mel[:, :, first : first + frames]
        prompt_1MT[:, :, : given.shape[-1]] = given
        self._codes += len(codes_N)
        return flow.solve(
            fixed_noise(first, frames, mu_1MT.device).to(mu_1MT), mu_1MT.new_ones(1, 1, frames), mu_1MT,
            self._speaker_BM, prompt_1MT, None, flow.config.guidance, flow.config.steps, self._solver,
        )  # fmt: skip
