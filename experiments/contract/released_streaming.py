"""The released codec's streaming scheme, as the reference for ours: the whole prefix again for each chunk.

Its cost grows with the square of the length. `lit_moss.codec.codec.Player` keeps what it needs of the past
instead; `check_contract` and the tests compare the two.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.codec.conformer import LOOKAHEAD_CODES
from lit_moss.codec.flow import Flow, Prompt
from lit_moss.codec.hift import HiFT

CACHED_FRAMES = 8
RATIO = rates.FRAMES_PER_CODE_DECODER


@dataclass
class Chunk:
    """One emission.

    Args:
        mel_1MT: New frames.
        codes_in: Codes given to the flow.
        first_code: The first of which frames are kept.
        wave_1L: Samples emitted.
    """

    mel_1MT: Tensor
    codes_in: int
    first_code: int
    wave_1L: Tensor


def mel_chunks(
    flow: Flow, codes_1N: Tensor, prompt: Prompt, noise: Tensor | None = None
) -> Iterator[tuple[Tensor, int, int, bool]]:
    """New mel frames of each hop, codes computed, first code kept, whether it is the last."""
    chunk, offset, total = flow.config.chunk_codes, 0, codes_1N.shape[1]
    hop = chunk + -len(prompt.codes_N) % chunk
    while total - offset >= hop + LOOKAHEAD_CODES:
        codes = offset + hop + LOOKAHEAD_CODES
        mel = flow.sample(codes_1N[:, :codes], prompt=prompt, streaming=True, finalize=False, noise=noise)
        yield mel[:, :, offset * RATIO :], codes, offset, False
        offset += hop
        if total - offset < hop + LOOKAHEAD_CODES:  # the end test uses the hop of the step just done
            break
        hop = chunk
    # The last call runs without the streaming flag: full masks.
    mel = flow.sample(codes_1N, prompt=prompt, noise=noise)
    yield mel[:, :, offset * RATIO :], total, offset, True


def released_stream(
    flow: Flow, hift: HiFT, codes_1N: Tensor, prompt: Prompt, noise: Tensor | None = None
) -> Iterator[Chunk]:
    """Chunks as the released decoder emits them, its random draws replaced by zeros."""
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
