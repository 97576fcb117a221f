"""A manifest with a small weight lost clips for the whole run: its share of a length bucket was rounded to 0.

With weights of 1 and 0.1, 60 clips in 16 buckets: each bucket of up to five of them never gave one, in any
epoch, and one of six gave one an epoch, 1.7 times too many. A corpus whose weights add up to less than half a
sample had no batches at all.
"""

from collections import Counter
from itertools import count

import numpy as np
import pytest

from lit_moss.data.order import BatchOrder

EPOCHS = 400


def seen_in(order, epochs):
    seen = Counter()
    for n in count():
        if order.epoch_of(n) >= epochs:
            return seen
        seen.update(order.batch(n))


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 1.1])
def test_every_clip_comes_as_often_as_its_weight_says(weight):
    rng = np.random.default_rng(5)
    lengths = rng.uniform(1, 12, 660)
    weights = np.repeat([1.0, weight], [600, 60])
    seen = seen_in(BatchOrder(lengths.tolist(), 60.0, 1, weights.tolist()), EPOCHS)
    assert all(seen[i] == EPOCHS for i in range(600))
    rare = np.array([seen[i] for i in range(600, 660)]) / EPOCHS
    assert abs(rare.mean() - weight) < 0.001  # of all together: within one clip an epoch at most
    whole = np.floor(weight)
    spread = np.sqrt((weight - whole) * (1 - weight + whole) / EPOCHS)
    assert abs(rare - weight).max() < 5 * spread  # of each, drawn at random


def test_a_corpus_with_less_than_half_a_sample_an_epoch_has_batches():
    order = BatchOrder([2.0, 3.0, 4.0], 8.0, 1, [0.1, 0.1, 0.1])
    batches = [order.batch(n) for n in range(90)]
    assert all(len(batch) == 1 for batch in batches)
    assert abs(order.epoch_of(89) - 90 / 0.3) <= 4
    assert set(range(3)) == {i for batch in batches for i in batch}
