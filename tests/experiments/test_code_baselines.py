"""Perplexities of counts against their closed forms."""

import numpy as np
import pytest

from experiments.studies.code_baselines import BACKOFF, perplexities


def test_unseen_codes_are_uniform_and_a_cycle_is_learnt():
    cycle = np.tile(np.arange(4), 1000)
    unigram, bigram = perplexities([cycle], [cycle], 4)
    assert unigram == pytest.approx(4.0)
    # After 1000 times each successor: (1000 + 20 / 4) / (1000 + 20); the last one has 999.
    assert bigram == pytest.approx((1000 + BACKOFF) / (1000 + BACKOFF / 4), rel=1e-4)
    assert perplexities([np.empty(0, dtype=np.int64)], [cycle], 4) == pytest.approx((4.0, 4.0))
