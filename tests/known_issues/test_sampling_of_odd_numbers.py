"""Temperatures near 0 and logits that are not numbers gave the index -1, which on a GPU ends the process, for
all clients of a server."""

import pytest
import torch

from lit_moss.llm.sampling import Sampling, sample


@pytest.mark.parametrize("temperature", [1e-7, 1e-40, 1e-320])
def test_temperature_near_zero_takes_the_most_likely_id(temperature):
    logits_BV = torch.tensor([[1.0, 30.0, 2.0], [9.0, -4.0, 8.0]])
    ids_B = sample(logits_BV, Sampling(temperature, 0, 1.0, 1.0), None, draws_B=torch.tensor([0.3, 0.9]))
    assert ids_B.tolist() == [1, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_give_an_id_that_exists(value):
    logits_BV = torch.tensor([[1.0, value, 2.0]])
    (row,) = sample(logits_BV, Sampling(), None, draws_B=torch.tensor([0.5])).tolist()
    assert 0 <= row < 3
