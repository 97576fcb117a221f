"""Key-value caches of one block of layers, in place: a decoded row copies nothing but itself.

Shapes: B sequences, H_kv key-value heads, L rows, D width of a head.
"""

import torch
from torch import Tensor


class KVCache:
    """What transformers' layers write to and read from by `update`.

    Buffers double when they are full. `advance` is called once a forward, after all layers have written.

    Args:
        room: Rows to make room for at first.
    """

    def __init__(self, room: int = 256) -> None:
        self.room, self.length = room, 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Writes new rows (B, H_kv, n, D) behind the old ones; returns all of them as views. What else
        transformers' layers hand over (`kwargs`, since 5.24) is for caches of other kinds."""
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
        """Rows held; transformers asks."""
        return self.length

    @property
    def bytes(self) -> int:
        """Memory held by the buffers."""
        return sum(x.numel() * x.element_size() for s in (self._keys, self._values) for x in s.values())


def causal_mask(first: int, rows: int, pad_B: Tensor | None, device: torch.device) -> Tensor | None:
    """Mask (B or 1, 1, rows, first + rows) for `rows` rows behind `first` cached ones; None where none
    is needed.

    `pad_B` counts the filler rows at the left of each sequence.
    """
    if pad_B is None and (rows == 1 or first == 0):
        return None
    key = torch.arange(first + rows, device=device)
    seen = key[None, None, :] <= torch.arange(first, first + rows, device=device)[None, :, None]
    if pad_B is not None:
        # A filler row sees itself, so that its softmax is no 0 / 0; nobody looks at it.
        own = key[None, None, :] == torch.arange(first, first + rows, device=device)[None, :, None]
        seen = (seen & (key[None, None, :] >= pad_B[:, None, None])) | own
    return seen[:, None]
