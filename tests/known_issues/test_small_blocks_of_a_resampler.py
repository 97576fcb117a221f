"""A `Resampler` whose blocks were shorter than half its kernel lost samples without a word.

96 kHz to 16 kHz in blocks of 32 samples gave 6504 samples of 10,000.
"""

import pytest
import torch

from lit_moss.audio.features import Resampler, resample


@pytest.mark.slow
@pytest.mark.parametrize(
    ("from_hz", "to_hz", "block"),
    [(96_000, 16_000, 32), (48_000, 16_000, 8), (1_000_000, 16_000, 320)],
)
def test_the_samples_are_those_of_the_whole(from_hz, to_hz, block):
    wave = torch.randn(23_000, generator=torch.Generator().manual_seed(0))
    resampler = Resampler(from_hz, to_hz, block_samples=block)
    pieces = [resampler.push(piece) for piece in wave.split(777)]
    assert sum(map(len, pieces)) > 0  # it is a stream
    assert torch.equal(torch.cat([*pieces, resampler.flush()]), resample(wave, from_hz, to_hz))
