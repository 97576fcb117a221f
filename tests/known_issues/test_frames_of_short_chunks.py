"""A log-mel frame depended on how many others were computed with it.

The mel filters were applied by a matrix product. BLAS picks its kernel by the number of rows: on a processor
with AVX-512 and without AMX, chunks of 1, 2, 3, 5 or 37 frames differed from the whole by up to 3e-8.
"""

import pytest
import torch

from lit_moss.audio.features import CausalLogMel


@pytest.mark.slow
@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 7, 37])
def test_chunks_give_the_frames_of_the_whole_to_the_bit(bins, frames):
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(1, 160 * 500)
    mel = CausalLogMel(bins)
    parts = [mel(chunk) for chunk in wave.split(160 * frames, dim=1)]
    assert torch.equal(torch.cat(parts, dim=-1), CausalLogMel(bins)(wave))
