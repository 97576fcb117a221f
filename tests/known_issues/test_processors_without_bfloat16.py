"""On a processor without bfloat16 units `bf16-mixed`, the default, trained ten times slower than float32, and
generation from weights in bfloat16 failed within oneDNN.
"""

import pytest
import torch
from torch import nn

from lit_moss.cli.defaults import trainer_defaults
from lit_moss.devices import has_fast_bf16
from lit_moss.llm import single_row


@pytest.mark.parametrize(
    ("units", "fast"),
    [({"avx2": True}, False), ({"avx512_f": True, "avx512_bf16": False}, False), ({"amx_bf16": True}, True),
     ({"avx512_bf16": True}, True), ({"architecture": "aarch64", "bf16": True}, True)],
)  # fmt: skip
def test_the_default_precision_follows_the_processor(monkeypatch, units, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert has_fast_bf16("cpu") == has_fast_bf16() == fast
    assert trainer_defaults()["precision"] == ("bf16-mixed" if fast else "32-true")


def test_the_default_precision_follows_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for fast in (False, True):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, fast=fast: fast)
        assert has_fast_bf16() == has_fast_bf16("cuda:1") == fast


def test_rows_in_bfloat16_need_no_units(monkeypatch):
    torch.manual_seed(0)
    linears = [nn.Linear(16, 8, bias=bias, dtype=torch.bfloat16) for bias in (False, True)]
    x_BLD = torch.randn(2, 1, 16, dtype=torch.bfloat16)
    expected = torch.cat([one(x_BLD) for one in linears], dim=-1)
    for units in {single_row._ONEDNN_BF16, False}:
        monkeypatch.setattr(single_row, "_ONEDNN_BF16", units)
        torch.testing.assert_close(single_row._product(x_BLD, *linears), expected, rtol=0.02, atol=0.02)
