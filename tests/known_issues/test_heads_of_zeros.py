"""Before its first step a head of zeros, as `init_codes: codebook` has, was said to be right about every code
(accuracy 1) and wrong about every pair (cloze 0): all logits are equal.
"""

from dataclasses import dataclass

import pytest
import torch
from backbones import config_of

from lit_moss.llm import SplitLM
from lit_moss.llm.heldout import HeldOut
from lit_moss.llm.losses import head_loss
from lit_moss.llm.rows import RowFormat

V, CODES = 60, 30
FORM = RowFormat(V, 40, 50, CODES, 51, 35, end_id=52)


@dataclass
class Item:
    modality: str
    context: list[int]
    true: list[int]
    other: list[int]


def test_equal_logits_are_no_right_answers():
    targets = torch.arange(20)
    found = head_loss(torch.randn(20, 8), torch.zeros(20, 8), targets)
    assert found.correct == 1  # the first code is chosen everywhere


def test_equal_scores_of_a_pair_are_chance():
    config = config_of("llama", vocab_size=V, num_hidden_layers=2, hidden_size=32, intermediate_size=64)
    lm = SplitLM.from_backbone(config, 1, 40, row_format=FORM)
    torch.nn.init.zeros_(lm.audio_lm_head.weight)
    items = [Item("speech", [50, V + 1], [V + 2, V + 3], [V + n, V + 5]) for n in range(4)]
    found = HeldOut(items, FORM).measure(lm, "cpu")
    assert found["speech_cloze"] == pytest.approx(0.5)
    assert found["speech_ppl"] == pytest.approx(40, rel=1e-3)
