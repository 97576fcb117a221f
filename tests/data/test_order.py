"""The order is a function of (corpus, seed, n): fresh objects, workers, ranks and resumes all agree."""

from collections import Counter
from itertools import count, dropwhile, islice, takewhile

import numpy as np
import pytest

from lit_moss.data.order import BatchOrder, OrderedBatchSampler


def corpus(seed):
    """(durations, budget, weights) of a random corpus: 1 to 300 utterances, also many of one length."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 300))
    lengths = rng.choice(
        [rng.uniform(0.1, 20, size), np.full(size, 5.0), rng.exponential(3, size).clip(0.1, 20)]
    )
    weights = rng.choice([0.0, 0.3, 0.5, 1.0, 1.7, 2.0], size)
    weights[int(rng.integers(size))] = 1.0
    return lengths.tolist(), float(max(lengths) * rng.uniform(1, 12)), weights.tolist()


def epoch(order, number):
    after = dropwhile(lambda n: order.epoch_of(n) < number, count())
    return [order.batch(n) for n in takewhile(lambda n: order.epoch_of(n) == number, after)]


SEEDS = range(25)


@pytest.mark.parametrize("seed", SEEDS)
def test_fresh_objects_agree_in_any_order_of_asking(seed):
    lengths, budget, weights = corpus(seed)
    a, b = (BatchOrder(lengths, budget, seed, weights) for _ in range(2))
    asked = np.random.default_rng(seed).permutation(3 * a.batches_per_epoch)[:60]
    batches = {int(n): a.batch(int(n)) for n in asked}
    assert {n: b.batch(n) for n in sorted(batches)} == batches
    assert a.fingerprint == b.fingerprint


@pytest.mark.parametrize("seed", SEEDS)
def test_every_utterance_exactly_once_an_epoch(seed):
    lengths, budget, _ = corpus(seed)
    order = BatchOrder(lengths, budget, seed)
    for number in (0, 1, 7):
        seen = [i for batch in epoch(order, number) for i in batch]
        assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_batch_is_empty_or_exceeds_its_budget(seed):
    lengths, budget, weights = corpus(seed)
    for order in (BatchOrder(lengths, budget, seed, weights), BatchOrder(lengths, budget, seed, buckets=3)):
        for batch in epoch(order, 0) + epoch(order, 1):
            assert batch
            assert len(batch) * max(lengths[i] for i in batch) <= budget


@pytest.mark.parametrize("seed", SEEDS)
def test_an_epoch_with_weights_has_a_size_within_one_and_the_right_counts(seed):
    lengths, budget, weights = corpus(seed)
    order = BatchOrder(lengths, budget, seed, weights)
    for number in range(4):
        seen = Counter(i for batch in epoch(order, number) for i in batch)
        assert abs(sum(seen.values()) - sum(weights)) < 1
        for i, weight in enumerate(weights):
            assert np.floor(weight) <= seen[i] <= np.ceil(weight)


def test_weights_two_and_a_half():
    order = BatchOrder([1.0] * 60, 5.0, seed=3, weights=[2.0] * 20 + [0.5] * 20 + [1.0] * 20)
    halves = Counter()
    for number in range(40):
        seen = Counter(i for batch in epoch(order, number) for i in batch)
        assert all(seen[i] == 2 for i in range(20))
        assert all(seen[i] == 1 for i in range(40, 60))
        chosen = [i for i in range(20, 40) if seen[i]]
        assert len(chosen) == 10  # so 70 samples: no epoch is larger
        assert all(seen[i] == 1 for i in chosen)
        halves.update(chosen)
    # A fresh share each epoch: of 40 draws at one half each utterance comes about 20 times.
    assert set(halves) == set(range(20, 40))
    assert all(8 <= times <= 32 for times in halves.values())


def test_epochs_and_seeds_differ():
    lengths = np.linspace(1, 10, 80).tolist()
    orders = [BatchOrder(lengths, 20.0, seed) for seed in (1, 2)]
    epochs = [epoch(orders[0], 0), epoch(orders[0], 1), epoch(orders[1], 0)]
    assert all(a != b for i, a in enumerate(epochs) for b in epochs[:i])


def test_batches_hold_similar_lengths():
    lengths = np.random.default_rng(0).uniform(1, 20, 2000).tolist()
    order = BatchOrder(lengths, 80.0, seed=0)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in epoch(order, 0))
    assert padded < 1.1 * sum(lengths)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"batch_sec": 21.0},
        {"buckets": 2},
        {"weights": [1.0] * 79 + [2.0]},
        {"durations_sec": [2.0] * 80},
    ],
)
def test_the_fingerprint_depends_on_all_that_the_order_depends_on(changes):
    options = {"durations_sec": np.linspace(1, 10, 80).tolist(), "batch_sec": 20.0, "seed": 1}
    assert BatchOrder(**options).fingerprint != BatchOrder(**(options | changes)).fingerprint


@pytest.mark.parametrize(
    ("lengths", "weights", "message"),
    [
        ([], None, "no utterances"),
        ([1.0, 2.0], [0.0, 0.0], "no utterances"),
        ([1.0, 11.0], None, r"11\.0 s exceeds the budget of 10\.0 s"),
    ],
)
def test_invalid_orders_are_refused(lengths, weights, message):
    with pytest.raises(ValueError, match=message):
        BatchOrder(lengths, 10.0, 0, weights)


def test_a_sample_key_is_index_batch_and_place():
    order = BatchOrder(np.linspace(1, 10, 40).tolist(), 20.0, seed=1)
    for n in (0, 5, 3 * order.batches_per_epoch):
        assert order.keys(n) == [(index, n, place) for place, index in enumerate(order.batch(n))]


@pytest.mark.parametrize("seed", range(5))
def test_changing_numbers_of_ranks_see_every_sample_exactly_once(seed):
    lengths, budget, _ = corpus(seed)
    consumed, keys = 0, []
    parts = [(1, 5), (2, 4), (1, 3), (3, 2), (1, 400)]  # ranks, steps until the next interruption
    for ranks, steps in parts:
        order = BatchOrder(lengths, budget, seed)  # a resume makes a new one
        dealt = [islice(OrderedBatchSampler(order, consumed, rank, ranks), steps) for rank in range(ranks)]
        for step in zip(*dealt, strict=True):
            keys += [key for batch in step for key in batch]
        consumed += ranks * steps
    order = BatchOrder(lengths, budget, seed)
    assert keys == [key for n in range(consumed) for key in order.keys(n)]
    first = [index for index, n, _ in keys if n < order.batches_per_epoch]
    assert sorted(first) == list(range(len(lengths)))


def test_ranks_of_one_step_have_different_samples():
    order = BatchOrder([1.0] * 64, 4.0, seed=0)
    a, b = (list(islice(OrderedBatchSampler(order, 0, rank, 2), 8)) for rank in (0, 1))
    assert not {key[0] for batch in a for key in batch} & {key[0] for batch in b for key in batch}
