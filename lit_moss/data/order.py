"""Which samples make the n-th batch of a run: a pure function of (corpora, seed, n).

It does not depend on the number of workers or ranks, nor on where a run was interrupted: ranks take batches
n, n + 1, …, and a resume sets n. An epoch is a number, not a state: batch n belongs to epoch
n // batches_per_epoch.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

# A sample's key: (index of the utterance, batch number, place in the batch). The last two seed its
# augmentation.
SampleKey = tuple[int, int, int]


class BatchOrder:
    """Batches of similar length within a budget of audio.

    Utterances are sorted by length once and cut into buckets. In each epoch every bucket is shuffled and cut
    into batches of one fixed size (what fits the budget at the bucket's greatest length), and all batches are
    shuffled. So every epoch has the same number of batches, and finding any batch takes the shuffles of at
    most one epoch.

    Args:
        durations_sec: Length of each utterance in seconds.
        batch_sec: Budget in seconds: batch size times the greatest length in it, padding included.
        seed: Seed of all shuffles.
        weights: How often an epoch contains each utterance; once each by default. A fraction draws a new
            random share of its bucket in each epoch.
        buckets: Largest number of length buckets; small corpora get fewer.

    Raises:
        ValueError: if there is nothing to order, or one utterance alone exceeds the budget.
    """

    def __init__(
        self,
        durations_sec: Sequence[float],
        batch_sec: float,
        seed: int,
        weights: Sequence[float] | None = None,
        buckets: int = 16,
    ) -> None:
        lengths = np.asarray(durations_sec, dtype=np.float64)
        weights_N = np.ones(len(lengths)) if weights is None else np.asarray(weights, dtype=np.float64)
        if not len(lengths) or not (weights_N > 0).any():
            raise ValueError("no utterances to order")
        if lengths.max() > batch_sec:
            raise ValueError(
                f"an utterance of {lengths.max():.1f} s exceeds the budget of {batch_sec:.1f} s a batch"
            )
        self.seed = seed
        by_length = np.argsort(lengths, kind="stable")
        # A bucket of fewer than four batches would hardly be shuffled, so small corpora get fewer buckets.
        mean_batch = max(1.0, batch_sec / lengths.mean())
        count = int(np.clip(len(lengths) / (4 * mean_batch), 1, buckets))
        self._buckets: list[tuple[np.ndarray, np.ndarray, int]] = []
        for members in np.array_split(by_length, count):
            size = max(1, int(batch_sec / lengths[members].max()))
            self._buckets.append((members, weights_N[members], size))
        self.samples_per_epoch = sum(_copies(w) for _, w, _ in self._buckets)
        self.batches_per_epoch = sum(-(-_copies(w) // size) for _, w, size in self._buckets if _copies(w))
        text = json.dumps([lengths.tolist(), weights_N.tolist(), batch_sec, seed, buckets])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, n: int) -> list[int]:
        """Utterance indices of batch n >= 0."""
        epoch, place = divmod(n, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def keys(self, n: int) -> list[SampleKey]:
        """Sample keys of batch n."""
        return [(index, n, place) for place, index in enumerate(self.batch(n))]

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        batches: list[list[int]] = []
        for members, weights, size in self._buckets:
            drawn = rng.permutation(_draw(members, weights, rng))
            batches += [drawn[i : i + size].tolist() for i in range(0, len(drawn), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def _copies(weights: np.ndarray) -> int:
    """Samples of a bucket in an epoch: whole copies, and the rounded sum of the fractions."""
    whole = np.floor(weights)
    return int(whole.sum() + round(float((weights - whole).sum())))


def _draw(members: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each member floor(weight) times, and random further ones, as many as the fractions add up to."""
    whole = np.floor(weights).astype(np.int64)
    fractions = weights - whole
    extra = _copies(weights) - int(whole.sum())
    repeated = np.repeat(members, whole)
    if not extra:
        return repeated
    chosen = rng.choice(members, size=extra, replace=False, p=fractions / fractions.sum())
    return np.concatenate([repeated, chosen])


class HasKeys(Protocol):
    """An order of batches."""

    def keys(self, n: int) -> list[Any]:
        """Keys of the samples of batch n; what a key is depends on the data set."""
        ...


class OrderedBatchSampler:
    """Endless batch sampler of one rank: batches first + rank, first + rank + ranks, …

    It has no length on purpose: a run is measured in steps, and Lightning must not restart it at the end of
    an epoch.
    """

    batch_size = 1  # Lightning's DeepSpeed strategy reads it for DeepSpeed's log

    def __init__(self, order: HasKeys, first: int, rank: int, ranks: int) -> None:
        self.order, self.first, self.rank, self.ranks = order, first, rank, ranks

    def __iter__(self) -> Iterator[list[Any]]:
        n = self.first + self.rank
        while True:
            yield self.order.keys(n)
            n += self.ranks
