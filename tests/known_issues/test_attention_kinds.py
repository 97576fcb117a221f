"""An unknown kind of attention ran as `segments`; `varlen` on a CPU ended with a NotImplementedError."""

import pytest
import torch
from lm_recipe import lm_recipe
from recording import fit

from lit_moss.errors import UserError
from lit_moss.llm.attention import Segments


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="attention is 'typo', expected auto, segments, mask, varlen"):
        Segments.of(torch.zeros(1, 4, dtype=torch.long), "typo")


@pytest.mark.nightly
def test_varlen_on_a_cpu_is_refused_in_one_line(tmp_path, capsys):
    config = lm_recipe(tmp_path, 2, stages=[{"policy": "full"}], attention="varlen")
    fit(tmp_path, config, expected=2)
    assert "attention is varlen on cpu in float32: the kernel needs CUDA" in capsys.readouterr().err
