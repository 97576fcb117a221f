"""Key-value cache of one block of layers, written in place: a decoded row copies nothing but itself.

Shapes: B sequences, H_kv key-value heads, L rows, D width of a head.
"""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of earlier rows; layers, ours and transformers', call `update`.

    Buffers double when they are full. `advance` is called once per forward, after all layers have written.

    Args:
        room: Rows to allocate at first.
    """

    def __init__(self, room: int = 256) -> None:
        self.room, self.length = room, 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Writes new rows (B, H_kv, n, D) after the old ones; returns all of them as views. Further arguments
        of transformers' layers (`kwargs`, since 5.24) are for caches of other kinds."""
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

    def advance(self, rows: int) -> None:
        """Counts the rows just written."""
        self.length += rows

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of rows, for transformers."""
        return self.length

    @property
    def bytes(self) -> int:
        """Memory of the buffers."""
        return sum(x.numel() * x.element_size() for s in (self._keys, self._values) for x in s.values())


def causal_mask(first: int, rows: int, pad_B: Tensor | None, device: torch.device) -> Tensor | None:
    """Mask (B or 1, 1, rows, first + rows) for `rows` rows after `first` cached ones; None if not needed.

    `pad_B` counts the filler rows at the left of each sequence.
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
