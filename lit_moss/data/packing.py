"""Assigns documents to sequences, and sequences to positions in a run, as pure functions.

Packing is best fit, longest first: each document goes to the fullest sequence that still has room for it.

    documents   [A A A A A A A] [B B B] [C C]        context 5
    pieces      [A A A A A] [A A A] [B B B] [C C]    the fifth row of A is in both pieces
    packs       A A A A A    A A A C C    B B B . .

A document longer than the context is cut into pieces, which attention treats as separate documents. The first
row of a piece is only an input, never a target, so a piece starts with the last row of the previous one:
every row is a target exactly once, as in an uncut document. Sequence n of a run depends only on (seed, n),
see `PackOrder`.
"""

import hashlib
import heapq
import zipfile
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from lit_moss.files import atomic_write

VERSION = 3  # version of `pack`; part of the file name of stored packs
SHORTEST_CUT = 32  # rows; a shorter piece would have few targets


@dataclass(frozen=True, eq=False)
class Packs:
    """Packs as index arrays; no data is copied.

    Args:
        context: Number of rows of a sequence.
        offsets: Pieces of pack i are offsets[i] to offsets[i + 1] (exclusive); int64 (packs + 1,).
        document: Document of each piece, int64 (pieces,).
        start: First row of the piece in its document, int64 (pieces,).
        stop: Row after the last row of the piece, int64 (pieces,).
        targets: Number of target rows of each pack, int64 (packs,); determined by the documents and the other
            arrays.
        left_out: Documents without a piece in any pack, int64; stored with the packs, because finding them
            requires reading every piece."""

    context: int
    offsets: np.ndarray
    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    targets: np.ndarray
    left_out: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def fill_rate(self) -> float:
        """Fraction of rows that are not filler."""
        return float((self.stop - self.start).sum()) / max(1, len(self) * self.context)

    def pieces(self, i: int) -> list[tuple[int, int, int]]:
        """(document, start, stop) of each piece of pack i, in order."""
        span = slice(self.offsets[i], self.offsets[i + 1])
        return list(zip(*(x[span].tolist() for x in (self.document, self.start, self.stop)), strict=True))

    @property
    def rows_per_piece(self) -> np.ndarray:
        """Mean number of rows of the pieces of each pack, float64 (packs,)."""
        return np.add.reduceat(self.stop - self.start, self.offsets[:-1]) / np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of all arrays."""
        digest = hashlib.sha256(str(self.context).encode())
        for array in (self.offsets, self.document, self.start, self.stop):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes an .npz file atomically."""
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.savez(file, context=np.int64(self.context), offsets=self.offsets, document=self.document,
                     start=self.start, stop=self.stop, targets=self.targets,
                     left_out=self.left_out)  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> "Packs | None":
        """Reads what `save` wrote; None if the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                names = ("offsets", "document", "start", "stop", "targets", "left_out")
                return cls(int(arrays["context"]), *(arrays[name] for name in names))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


# (document, start, stop) of pieces -> number of targets of each piece.
CountTargets = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def pack(
    lengths: np.ndarray,
    context: int,
    min_fill: float = 0.0,
    count: CountTargets | None = None,
    whole: bool = False,
) -> Packs:
    """Best-fit packing, longest first, ties by document number: equal inputs give equal packs.

    Every pack has a target: a step on a pack without targets would have a loss of 0 but still decay the
    weights.

    Args:
        lengths: Number of rows of each document; documents with one row, which predict nothing, are left out.
        context: Number of rows of a sequence, at least 2.
        min_fill: Minimum fill rate, 0 to 1. Below it, sequences are broken up again, the emptiest first, and
            their documents are cut to fit into the others; as few documents as necessary are cut. 0: only
            documents longer than the context are cut. With few sequences the rate may be unreachable.
        count: Counts the targets of pieces, for documents with loss masks. None: every row but a piece's
            first is a target. Pieces without targets are left out, also those that result from cutting.
        whole: Leave out documents longer than the context, instead of cutting them.
    """
    if context < 2:
        raise ValueError(f"context is {context} rows, expected 2 or more")
    lengths, count = np.asarray(lengths, dtype=np.int64), count or _all_but_first_rows
    pieces = _pieces(lengths, context)
    keep = count(*pieces) > 0
    if whole:
        keep &= lengths[pieces[0]] <= context
    document, start, stop = (x[keep] for x in pieces)
    pieces, size = (document, start, stop), stop - start
    members = _best_fit(size, np.lexsort((start, document, -size)), context)
    filled = np.array([size[m].sum() for m in members], dtype=np.int64)
    total = int(filled.sum())
    enough = max(-(-total // context), int(total / (min_fill * context))) if min_fill else len(members)
    if enough < len(members):
        pieces, members = _cut_to_fit(pieces, members, filled, context, len(members) - enough)
    targets = count(*pieces)
    # Cutting may have left a prompt without its reply.
    members = [[p for p in m if targets[p]] for m in members if targets[m].any()]
    flat = np.array([p for pack_ in members for p in pack_], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in members])]).astype(np.int64)
    document, start, stop = (x[flat] for x in pieces)
    pack_targets = np.array([targets[m].sum() for m in members], dtype=np.int64)
    left_out = np.setdiff1d(np.arange(len(lengths)), document)
    return Packs(context, offsets, document, start, stop, pack_targets, left_out)


def _all_but_first_rows(document: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    return stop - start - 1


def _best_fit(size: np.ndarray, order: np.ndarray, context: int) -> list[list[int]]:
    """Indices of the pieces in each pack."""
    # Open packs by their number of free rows (`rooms`, sorted); among equal ones, the oldest first.
    rooms: list[int] = []
    open_by_room: dict[int, deque[int]] = {}
    members: list[list[int]] = []
    for piece, need in zip(order.tolist(), size[order].tolist(), strict=True):
        at = bisect_left(rooms, need)
        if at == len(rooms):
            members.append([piece])
            which, room = len(members) - 1, context - need
        else:
            room = rooms[at]
            which = open_by_room[room].popleft()
            if not open_by_room[room]:
                del open_by_room[room]
                rooms.pop(at)
            members[which].append(piece)
            room -= need
        if room >= 2:
            if room not in open_by_room:
                insort(rooms, room)
                open_by_room[room] = deque()
            open_by_room[room].append(which)
    return members


def _cut_to_fit(
    pieces: tuple[np.ndarray, np.ndarray, np.ndarray],
    members: list[list[int]],
    filled: np.ndarray,
    context: int,
    count: int,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], list[list[int]]]:
    """Breaks up the `count` emptiest packs; pieces that fit into no other pack form new packs.

    A document is not cut to fill fewer than `SHORTEST_CUT` free rows; its last piece may be shorter.
    """
    emptiest = np.argsort(filled, kind="stable")[:count].tolist()
    broken_up = set(emptiest)
    remaining = [i for i in range(len(members)) if i not in broken_up]
    packs = [members[i] for i in remaining]
    rooms = [(-(context - int(filled[i])), n) for n, i in enumerate(remaining)]
    heapq.heapify(rooms)
    # Pieces of the remaining packs keep their indices; new pieces are appended.
    document, start, stop = (x.tolist() for x in pieces)
    for piece in (p for i in emptiest for p in members[i]):
        first, last = start[piece], stop[piece]
        while last - first >= 2:
            room = -rooms[0][0] if rooms else 0
            if room < min(SHORTEST_CUT, last - first):
                packs.append([])
                heapq.heappush(rooms, (-context, len(packs) - 1))
                continue
            _, which = heapq.heappop(rooms)
            end = min(last, first + room)
            packs[which].append(len(document))
            document.append(document[piece])
            start.append(first)
            stop.append(end)
            heapq.heappush(rooms, (-(room - (end - first)), which))
            first = end if end == last else end - 1  # the next piece starts with the last row of this one
    return (np.array(document), np.array(start), np.array(stop)), packs


def _pieces(lengths: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document, start, stop) of all pieces; consecutive pieces of a document share one row."""
    count = np.maximum(1, -(-(lengths - 1) // (context - 1)))
    document = np.repeat(np.arange(len(lengths)), count)
    place = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    start = place * (context - 1)
    stop = np.minimum(start + context, lengths[document])
    keep = stop - start >= 2
    return document[keep], start[keep], stop[keep]


class PackOrder:
    """Source and pack of the n-th sample of a run, as a pure function of (sizes, epochs, seed, n).

    A round contains epochs[i] times all packs of source i, shuffled together. With speech 1.0 and text 0.1,
    it contains every speech pack once and a tenth of the text; the next round takes the next tenth, and a
    source is reshuffled only when all of it has been used. Fractions of a pack are carried over: after r
    rounds, source i has contributed floor(r * epochs[i] * sizes[i]) packs, without drift. Packs are equally
    long, so fractions of packs are fractions of tokens.

    Args:
        sizes: Number of packs of each source.
        epochs: Number of times a round contains each source.
        seed: Seed of all shuffles.
        rows: For `short_first`: length of the documents in each pack, per source.
        short_first: Number of samples at the start of the first round that take the packs with the shortest
            documents, in ascending order, as in the first epoch of Deep Speech 2 (arXiv:1512.02595, section
            3.3). Each source keeps its positions, so that the proportions do not change; the round contains
            the same packs as without the option.
    """

    def __init__(
        self,
        sizes: list[int],
        epochs: list[float],
        seed: int,
        rows: list[np.ndarray] | None = None,
        short_first: int = 0,
    ) -> None:
        if len(sizes) != len(epochs) or not sizes or min(sizes) < 1 or min(epochs) <= 0:
            raise ValueError(f"sizes {sizes} and epochs {epochs}: expected as many of both, all above 0")
        self.sizes, self.epochs, self.seed = list(sizes), list(epochs), seed
        # Exact fractions: 0.1 means one tenth, not the nearest double.
        self._shares = [Fraction(str(e)) * size for size, e in zip(sizes, epochs, strict=True)]
        self._rows, self.short_first = rows, short_first
        self._round = lru_cache(maxsize=2)(self._make_round)
        self._permutation = lru_cache(maxsize=4 * len(sizes))(self._make_permutation)

    @property
    def shares(self) -> list[float]:
        """Mean number of packs of each source per round."""
        return [float(share) for share in self._shares]

    @property
    def packs_per_round(self) -> float:
        """Mean number of packs per round."""
        return float(sum(self._shares))

    def at(self, n: int) -> tuple[int, int]:
        """(source, pack) of sample n >= 0."""
        number = int(n / sum(self._shares))  # a lower bound: first samples of rounds are rounded down
        while self._first_sample(number + 1) <= n:
            number += 1
        source, pack_ = self._round(number)[n - self._first_sample(number)].tolist()
        return source, pack_

    def _given(self, source: int, rounds: int) -> int:
        """Number of packs that a source has contributed after `rounds` rounds."""
        return int(rounds * self._shares[source])

    def _first_sample(self, number: int) -> int:
        """Index of the first sample of a round."""
        return sum(self._given(source, number) for source in range(len(self.sizes)))

    def _make_round(self, number: int) -> np.ndarray:
        """Source and pack of every sample of a round, int64 (samples, 2)."""
        parts = []
        for source, size in enumerate(self.sizes):
            k = np.arange(self._given(source, number), self._given(source, number + 1))
            pack_ = np.empty_like(k)
            for cycle in np.unique(k // size).tolist():
                in_cycle = k // size == cycle
                pack_[in_cycle] = self._permutation(source, cycle)[k[in_cycle] % size]
            parts.append(np.stack([np.full_like(k, source), pack_], axis=1))
        samples = np.concatenate(parts)
        samples = samples[np.random.default_rng([self.seed, 1, number]).permutation(len(samples))]
        return samples if number or not self.short_first else self._shortest_first(samples)

    def _shortest_first(self, samples: np.ndarray) -> np.ndarray:
        assert self._rows is not None
        ordered = samples.copy()
        for source, rows in enumerate(self._rows):
            places = np.flatnonzero(samples[:, 0] == source)
            packs = samples[places, 1]
            by_length = np.argsort(rows[packs], kind="stable")  # equally long packs stay shuffled
            first = by_length[: np.searchsorted(places, self.short_first)]
            rest = np.setdiff1d(np.arange(len(packs)), first)
            ordered[places, 1] = packs[np.concatenate([first, rest])]
        return ordered

    def _make_permutation(self, source: int, cycle: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 2, source, cycle]).permutation(self.sizes[source])

    @property
    def fingerprint(self) -> str:
        """16 hex digits of sizes, epochs and options."""
        content = (self.sizes, self.epochs, self.seed, *([self.short_first] if self.short_first else []))
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


class PackedBatches:
    """Micro-batches of packs, in order, for `OrderedBatchSampler`.

    Args:
        order: Order of the packs.
        size: Number of packs per micro-batch.
    """

    def __init__(self, order: PackOrder, size: int) -> None:
        self.order, self.size = order, size

    def keys(self, n: int) -> list[tuple[int, int]]:
        """(source, pack) of every sequence in micro-batch n."""
        return [self.order.at(n * self.size + i) for i in range(self.size)]
