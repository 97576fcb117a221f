"""Samples of the n-th batch of a run, as a pure function of (corpora, seed, n).

They do not depend on the number of workers or ranks, nor on where a run was interrupted: ranks take batches
n, n + 1, …, and a resume sets n. An epoch is a number, not a state: batch n belongs to epoch n //
batches_per_epoch. Only with fractional weights do the sizes of epochs differ, by a few samples.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

# A sample's key: (index of the utterance, batch number, position in the batch). The last two seed its
# augmentation.
SampleKey = tuple[int, int, int]

_GOLDEN = (5**0.5 - 1) / 2


class BatchOrder:
    """Batches of utterances with similar lengths, within a budget of audio.

    Utterances are sorted by length once and divided into buckets. In each epoch every bucket is shuffled and
    divided into batches of a fixed size (what fits the budget at the bucket's maximum length), and all
    batches are shuffled. Finding any batch therefore takes the shuffles of one epoch at most.

    Args:
        durations_sec: Length of each utterance in seconds.
        batch_sec: Budget in seconds: batch size times the longest utterance of the batch, padding included.
        seed: Seed of all shuffles.
        weights: Number of times an epoch contains each utterance. Default: 1. A fractional weight draws a new
            random part of its bucket in each epoch: over many epochs each bucket occurs as often as its
            weights say, even if they add up to less than one sample per epoch.
        buckets: Maximum number of length buckets; small corpora get fewer.

    Raises:
        ValueError: if there are no utterances, or a single utterance exceeds the budget.
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
        # A bucket with fewer than four batches would hardly be shuffled, so small corpora get fewer buckets.
        mean_batch = max(1.0, batch_sec / lengths.mean())
        count = int(np.clip(len(lengths) / (4 * mean_batch), 1, buckets))
        self._buckets: list[tuple[np.ndarray, np.ndarray, int]] = []
        for members in np.array_split(by_length, count):
            size = max(1, int(batch_sec / lengths[members].max()))
            self._buckets.append((members, weights_N[members], size))
        self._whole = np.array([int(np.floor(w).sum()) for _, w, _ in self._buckets])
        # Rounded, so that ten tenths are exactly one.
        fractions = np.round([(w - np.floor(w)).sum() for _, w, _ in self._buckets], 9)
        self._fraction_ends = np.concatenate([[0.0], np.cumsum(fractions)]).round(9)
        self._has_fractions = bool(fractions.any())
        self._first = [0]  # index of each epoch's first batch, computed as needed
        self.batches_per_epoch = self._batches(0)
        content = [lengths.tolist(), weights_N.tolist(), batch_sec, seed, buckets]
        text = json.dumps([*content, "rotating"] if self._has_fractions else content)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, n: int) -> list[int]:
        """Utterance indices of batch n >= 0."""
        epoch, place = self._place(n)
        return self._epoch(epoch)[place]

    def epoch_of(self, n: int) -> int:
        """Epoch of batch n >= 0."""
        return self._place(n)[0]

    def keys(self, n: int) -> list[SampleKey]:
        """Sample keys of batch n."""
        return [(index, n, place) for place, index in enumerate(self.batch(n))]

    def _place(self, n: int) -> tuple[int, int]:
        """(epoch, position in the epoch) of batch n."""
        if not self._has_fractions:
            return divmod(n, self.batches_per_epoch)
        while self._first[-1] <= n:
            self._first.append(self._first[-1] + self._batches(len(self._first) - 1))
        epoch = bisect_right(self._first, n) - 1  # the last epoch that begins there: the others are empty
        return epoch, n - self._first[epoch]

    def _extra(self, epoch: int) -> np.ndarray:
        """Samples of each bucket beyond the whole copies: the sum of its fractions, rounded up or down.

        Systematic sampling: marks are placed one unit apart on the line of all fractions, and a bucket gets
        as many samples as there are marks in its part. The offset of the marks runs through multiples of the
        golden ratio, which are evenly spread, so that each bucket reaches its mean within few epochs.
        """
        marks = np.floor(self._fraction_ends + epoch * _GOLDEN % 1.0)
        return np.diff(marks).astype(np.int64)

    def _batches(self, epoch: int) -> int:
        sizes = np.array([size for _, _, size in self._buckets])
        return int((-(-(self._whole + self._extra(epoch)) // sizes)).sum())

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        batches: list[list[int]] = []
        for (members, weights, size), extra in zip(self._buckets, self._extra(epoch).tolist(), strict=True):
            drawn = rng.permutation(_draw(members, weights, extra, rng))
            batches += [drawn[i : i + size].tolist() for i in range(0, len(drawn), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def _draw(members: np.ndarray, weights: np.ndarray, extra: int, rng: np.random.Generator) -> np.ndarray:
    """Each member floor(weight) times, plus `extra` members drawn in proportion to the fractions."""
    whole = np.floor(weights).astype(np.int64)
    repeated = np.repeat(members, whole)
    if not extra:
        return repeated
    fractions = weights - whole
    chosen = rng.choice(members, size=extra, replace=False, p=fractions / fractions.sum())
    return np.concatenate([repeated, chosen])


class HasKeys(Protocol):
    """Any order of batches."""

    def keys(self, n: int) -> list[Any]:
        """Keys of the samples of batch n; the type of key depends on the data set."""
        ...


class OrderedBatchSampler:
    """Endless batch sampler of one rank: batches first + rank, first + rank + ranks, …

    It has no length, because a run is measured in steps, and Lightning must not restart the sampler at the
    end of an epoch.
    """

    batch_size = 1  # read by Lightning's DeepSpeed strategy, for DeepSpeed's log

    def __init__(self, order: HasKeys, first: int, rank: int, ranks: int) -> None:
        self.order, self.first, self.rank, self.ranks = order, first, rank, ranks

    def __iter__(self) -> Iterator[list[Any]]:
        n = self.first + self.rank
        while True:
            yield self.order.keys(n)
            n += self.ranks
