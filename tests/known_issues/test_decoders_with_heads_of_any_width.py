"""A decoder whose attention is not a multiple of 64 wide (two heads of 48) was saved but could not be opened:
its heads were guessed 64 wide, and their product, 64, was compared with its 96."""

import pytest
from decoders import small_flow

from lit_moss.codec import Codec
from lit_moss.codec.flow_config import sizes_of_tensors


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "width"), [(2, 48), (1, 48), (3, 32), (2, 64), (4, 64), (1, 80), (2, 80)])
def test_a_saved_decoder_opens(tmp_path, heads, width):
    flow = small_flow(heads=heads, head_width=width)
    guessed = sizes_of_tensors(flow.state_dict())
    assert guessed.heads * guessed.head_width == heads * width
    Codec(None, flow).save_pretrained(tmp_path)
    assert Codec.from_pretrained(tmp_path).flow.config == flow.config
