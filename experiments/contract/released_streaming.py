"""The released codec's streaming scheme, as a reference: it recomputes the whole prefix for each chunk.

Its cost is quadratic in the length. `lit_moss.codec.codec.Player` keeps a state instead; `check_contract` and
the tests compare the two.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.codec.conformer import LOOKAHEAD_CODES
from lit_moss.codec.flow import Flow
from lit_moss.codec.flow_network import Prompt
from lit_moss.codec.flow_sampler import fixed_noise
from lit_moss.codec.hift import HiFT

CACHED_FRAMES = 8
RATIO = rates.FRAMES_PER_CODE_DECODER


@dataclass
class Chunk:
    """One chunk of output.

    Args:
        mel_1MT: New mel frames.
        codes_in: Number of codes passed to the flow.
        first_code: Index of the first code whose frames are new.
        wave_1L: New samples.
    """

    mel_1MT: Tensor
    codes_in: int
    first_code: int
    wave_1L: Tensor


@torch.no_grad()
def released_sample(
    flow: Flow,
    codes_1N: Tensor,
    prompt: Prompt,
    noise: Tensor | None = None,
    streaming: bool = False,
    final: bool = True,
) -> Tensor:
    """Samples the mel of one utterance as the released decoder calls `Flow.sample`.

    Args:
        flow: Flow decoder.
        codes_1N: Codes.
        prompt: Speech to continue.
        noise: Initial noise (1, M, at least T including the prompt); None: the fixed noise.
        streaming: Use chunk-causal masks with full history.
        final: If False, use the last three codes only as look-ahead.

    Returns:
        Mel (1, M, 4 N), or (1, M, 4 (N - 3)).
    """
    before = len(prompt.codes_N)
    codes_1N = torch.cat([prompt.codes_N[None].to(codes_1N), codes_1N], dim=1).to(flow.device)
    ahead_1A = None
    if not final:
        codes_1N, ahead_1A = codes_1N[:, :-LOOKAHEAD_CODES], codes_1N[:, -LOOKAHEAD_CODES:]
    lengths_1 = torch.tensor([codes_1N.shape[1]], device=flow.device)
    chunks = flow.chunks(prompt_codes=before) if streaming else None
    mu_1MT = flow.encode(codes_1N, lengths_1, chunks, ahead_1A).float().transpose(1, 2)
    conditions = flow.conditions(mu_1MT, lengths_1, prompt, chunks)
    frames = mu_1MT.shape[-1]
    noise_1MT = fixed_noise(0, frames, flow.device) if noise is None else noise[:, :, :frames]
    mel_1MT = flow.sampler.solve(flow.decoder.estimator, noise_1MT.to(mu_1MT), conditions)
    return mel_1MT[:, :, RATIO * before :]


def mel_chunks(
    flow: Flow, codes_1N: Tensor, prompt: Prompt, noise: Tensor | None = None
) -> Iterator[tuple[Tensor, int, int, bool]]:
    """Yields (new mel frames, codes computed, first code kept, is last) of each hop."""
    chunk, offset, total = flow.config.chunk_codes, 0, codes_1N.shape[1]
    hop = chunk + -len(prompt.codes_N) % chunk
    while total - offset >= hop + LOOKAHEAD_CODES:
        codes = offset + hop + LOOKAHEAD_CODES
        mel = released_sample(flow, codes_1N[:, :codes], prompt, noise, streaming=True, final=False)
        yield mel[:, :, offset * RATIO :], codes, offset, False
        offset += hop
        if total - offset < hop + LOOKAHEAD_CODES:  # the end test uses the hop of the current step
            break
        hop = chunk
    # The last call does not set the streaming flag: full masks.
    mel = released_sample(flow, codes_1N, prompt, noise)
    yield mel[:, :, offset * RATIO :], total, offset, True


def released_stream(
    flow: Flow, hift: HiFT, codes_1N: Tensor, prompt: Prompt, noise: Tensor | None = None
) -> Iterator[Chunk]:
    """Yields chunks as the released decoder emits them, with its random draws replaced by zeros."""
    held = CACHED_FRAMES * rates.DECODER_HOP_SAMPLES
    window = torch.hamming_window(2 * held, periodic=False)
    cache: tuple[Tensor, Tensor, Tensor] | None = None
    for new, codes, first, last in mel_chunks(flow, codes_1N, prompt, noise):
        mel = new if cache is None else torch.cat([cache[0], new], dim=-1)
        wave, source = hift(mel, None, None if cache is None else cache[1])
        if cache is not None:
            faded = wave[:, :held] * window[:held] + cache[2] * window[held:]
            wave = torch.cat([faded, wave[:, held:]], dim=1)
        cache = (mel[:, :, -CACHED_FRAMES:], source[:, :, -held:], wave[:, -held:])
        yield Chunk(new, codes, first, wave if last else wave[:, :-held])
