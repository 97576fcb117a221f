"""Key-value cache of one block of layers, updated in place: decoding a row copies only that row.

Shapes: B sequences, S sequences, each with its own cache, H_kv key-value heads, G query heads per key-value
head, L rows, D width of a head.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_moss.llm.branches import Branch, Modality


class KVCache:
    """Keys and values of earlier rows. Layers, ours and transformers', call `update`.

    Buffers double in size when they are full. Call `advance` once per forward, after all layers have written.

    Args:
        room: Number of rows to allocate at first.
    """

    def __init__(self, room: int = 256) -> None:
        self.room, self.length = room, 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Appends new rows (B, H_kv, n, D) and returns views of all rows.

        The other arguments, which transformers' layers pass (`kwargs`, since 5.24), are for other kinds of
        caches."""
        stop = self.length + keys.shape[2]
        for store, new in ((self._keys, keys), (self._values, values)):
            old = store.get(layer_idx)
            if old is None or old.shape[2] < stop:
                while self.room < stop:
                    self.room *= 2
                buffer = new.new_empty(*new.shape[:2], self.room, new.shape[3])
                if old is not None:
                    buffer[:, :, : self.length] = old[:, :, : self.length]
                store[layer_idx] = buffer
            store[layer_idx][:, :, self.length : stop] = new
        return self._keys[layer_idx][:, :, :stop], self._values[layer_idx][:, :, :stop]

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, layer_idx: int, mask: Tensor | None, scale: float
    ) -> Tensor:
        """Writes a new row (B, H_kv, 1, D) and attends to all rows; queries and output: (B, H_kv, G, D)."""
        keys, values = self.update(keys, values, layer_idx)
        return F.scaled_dot_product_attention(q, keys, values, mask, scale=scale)

    def advance(self, rows: int) -> None:
        """Adds the rows just written to the length."""
        self.length += rows

    def first(self, rows: int) -> "KVCache":
        """A copy of the first `rows` rows."""
        copied = KVCache(max(64, rows))
        copied.length = rows
        for old, new in ((self._keys, copied._keys), (self._values, copied._values)):
            for layer_idx, buffer in old.items():
                new[layer_idx] = buffer.new_empty(*buffer.shape[:2], copied.room, buffer.shape[3])
                new[layer_idx][:, :, :rows] = buffer[:, :, :rows]
        return copied

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of rows; called by transformers."""
        return self.length

    @property
    def bytes(self) -> int:
        """Memory of the buffers, in bytes."""
        return sum(x.numel() * x.element_size() for s in (self._keys, self._values) for x in s.values())


class CacheGroup:
    """Caches of S sequences, for decoding one new row of each.

    Attention runs over the cache of each sequence in turn, so lengths may differ, nothing is padded, and a
    sequence may join or leave at any row."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self.caches = caches

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, layer_idx: int, mask: Tensor | None, scale: float
    ) -> Tensor:
        """As `KVCache.attend`, with shapes (S, H_kv, 1, D) and (S, H_kv, G, D)."""
        parts = zip(self.caches, q.split(1), keys.split(1), values.split(1), strict=True)
        return torch.cat([c.attend(q_1, k_1, v_1, layer_idx, mask, scale) for c, q_1, k_1, v_1 in parts])

    def advance(self, rows: int) -> None:
        """Adds the rows just written to the lengths."""
        for cache in self.caches:
            cache.advance(rows)


@dataclass
class Tail:
    """A branch with its cache, and the trunk outputs that it has not processed yet."""

    branch: Branch
    cache: KVCache = field(default_factory=KVCache)
    waiting: list[Tensor] = field(default_factory=list)

    @property
    def rows_waiting(self) -> int:
        """Number of trunk outputs not yet processed."""
        return sum(h.shape[1] for h in self.waiting)

    def take(self, rows: int) -> Tensor:
        """Removes and returns the first waiting trunk outputs, (B, rows, D)."""
        h_BLD = torch.cat(self.waiting, dim=1) if len(self.waiting) > 1 else self.waiting[0]
        self.waiting = [h_BLD[:, rows:]] if h_BLD.shape[1] > rows else []
        return h_BLD[:, :rows]

    def truncate(self, rows: int) -> None:
        """Drops all rows of the sequence after the first `rows`."""
        self.cache.length = min(self.cache.length, rows)
        left = rows - self.cache.length
        self.waiting = [torch.cat(self.waiting, dim=1)[:, :left]] if left else []


class Caches:
    """All caches of a batch of sequences: one for the trunk and one per tail.

    Args:
        branches: The model's branches.
        room: Number of rows to allocate at first.
    """

    def __init__(self, branches: Iterable[Branch], room: int = 256) -> None:
        self.trunk = KVCache(room)
        self.tails: dict[Modality, Tail] = {branch.name: Tail(branch) for branch in branches}

    def wait(self, h_BLD: Tensor) -> None:
        """Appends the trunk's output (B, L, D) to the rows that each tail still has to process."""
        for tail in self.tails.values():
            tail.waiting.append(h_BLD)

    def truncate(self, rows: int) -> None:
        """Drops all rows after the first `rows`."""
        self.trunk.length = min(self.trunk.length, rows)
        for tail in self.tails.values():
            tail.truncate(rows)

    def first(self, rows: int) -> "Caches":
        """A copy of the first `rows` rows."""
        copied = Caches(tail.branch for tail in self.tails.values())
        copied.trunk = self.trunk.first(rows)
        for name, tail in self.tails.items():
            written = min(rows, tail.cache.length)
            own = copied.tails[name]
            own.cache = tail.cache.first(written)
            if rows > written:
                own.waiting = [torch.cat(tail.waiting, dim=1)[:, : rows - written].clone()]
        return copied

    @property
    def bytes(self) -> int:
        """Memory of buffers and waiting rows, in bytes."""
        tails = self.tails.values()
        waiting = sum(h.numel() * h.element_size() for tail in tails for h in tail.waiting)
        return self.trunk.bytes + sum(tail.cache.bytes for tail in tails) + waiting


def causal_mask(first: int, rows: int, pad_B: Tensor | None, device: torch.device) -> Tensor | None:
    """Mask (B or 1, 1, rows, first + rows) for `rows` new rows after `first` cached ones; None if not needed.

    `pad_B` is the number of filler rows at the left of each sequence.
    """
    if pad_B is None and (rows == 1 or first == 0):
        return None
    key = torch.arange(first + rows, device=device)
    seen = key[None, None, :] <= torch.arange(first, first + rows, device=device)[None, :, None]
    if pad_B is not None:
        # A filler row attends to itself, so that its softmax is not 0 / 0; its output is never used.
        own = key[None, None, :] == torch.arange(first, first + rows, device=device)[None, :, None]
        seen = (seen & (key[None, None, :] >= pad_B[:, None, None])) | own
    return seen[:, None]
