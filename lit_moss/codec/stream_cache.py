"""Masks of chunk-causal attention, and the state that a causal network passes from one chunk to the next.

Attention in the flow decoder is chunk-causal: a frame attends to its whole chunk and to earlier frames.

    frame i attends to j        <=>  j < (floor(i / c) + 1) c                       (chunk of c frames)
                                and  j >= (floor(i / c) - left) c  or  j < kept     (bounded history only)

The second line is specific to lit_moss: without it, the cost and memory of a stream grow with its length. The
first `kept` frames (those of the voice prompt) stay visible for any length of the stream.

Shapes: B batch, H heads, T frames of a chunk, S slots of the cache, D head width, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Chunks:
    """Chunk-causal attention at one frame rate; see the module docstring.

    Args:
        size: Number of frames of a chunk.
        left: Number of chunks visible before a frame's own chunk; None: all.
        kept: Number of initial frames that every frame attends to.
    """

    size: int
    left: int | None = None
    kept: int = 0

    def times(self, ratio: int) -> "Chunks":
        """The same durations at a rate `ratio` times as high."""
        return Chunks(self.size * ratio, self.left, self.kept * ratio)

    @property
    def ring_frames(self) -> int | None:
        """Maximum number of frames that a stream holds in addition to the `kept` ones; None: unlimited."""
        return None if self.left is None else (self.left + 1) * self.size

    def mask(self, frames: int, device: torch.device) -> Tensor:
        """Which keys (columns) each query (row) attends to: bool (T, T)."""
        i = torch.arange(frames, device=device)[:, None]
        j = torch.arange(frames, device=device)[None]
        seen = j < (i // self.size + 1) * self.size
        if self.left is not None:
            seen &= (j >= (i // self.size - self.left) * self.size) | (j < self.kept)
        return seen


def length_mask(lengths_B: Tensor, longest: int) -> Tensor:
    """Mask of the real frames in a padded batch: bool (B, T)."""
    return torch.arange(longest, device=lengths_B.device)[None] < lengths_B[:, None]


def seen_keys(lengths_B: Tensor, longest: int, chunks: Chunks | None) -> Tensor:
    """Keys that each query attends to: bool (B, 1, T, T), or (B, 1, 1, T) for full attention (no chunks)."""
    seen = length_mask(lengths_B, longest)[:, None, None]
    if chunks is not None:
        seen = seen & chunks.mask(longest, lengths_B.device)
    return seen


class StreamCache:
    """Convolution tails, keys and values of all layers of one rate, for one stream.

    A step of a stream is one chunk: `begin(n)`, then the layers, each of which calls `prepend` or
    `keys_values` once. Keys and values are written to ring buffers in place, so a step copies one chunk
    instead of the history: attention without positions does not depend on the order of keys, and layers with
    positions read `slot_positions`.

    Args:
        chunks: Chunk size (every step but the last has that many frames) and history.
    """

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self.frames = 0  # number of frames of earlier steps
        self._tails: dict[nn.Module, Tensor] = {}
        self._past: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        # On the CPU, where sizes are computed from it without waiting for the device.
        self._positions = torch.full((0,), -1, device="cpu")
        self._slots = torch.zeros(0, dtype=torch.long, device="cpu")
        self._used = 0
        self.positions = torch.zeros(0, dtype=torch.long, device="cpu")  # frame numbers of this step
        self.seen: Tensor | None = None  # slots that this step attends to: bool (1, S), None for all

    def begin(self, frames: int, device: torch.device) -> None:
        """Starts a step of `frames` frames, at most one chunk."""
        size, left, kept = self.chunks.size, self.chunks.left, self.chunks.kept
        if not 0 < frames <= size:
            raise ValueError(f"a step of {frames} frames, expected 1 to {size}")
        if self.frames % size:
            raise ValueError("the step before was shorter than a chunk: only the last one of a stream may be")
        new = torch.arange(self.frames, self.frames + frames, device="cpu")
        slots = self._slots_of(new)
        self._grow(int(slots.max()) + 1)
        self._positions[slots] = new
        self._slots = slots.to(device, non_blocking=True)
        self.positions = new
        oldest = self.frames - (left or 0) * size
        known = self._positions[: self._used]
        visible = (known >= 0) & ((known >= oldest) | (known < kept) | (left is None))
        self.seen = None if bool(visible.all()) else visible[None].to(device, non_blocking=True)
        self.frames += frames

    def _slots_of(self, frames_T: Tensor) -> Tensor:
        kept, ring = self.chunks.kept, self.chunks.ring_frames
        if ring is None:
            return frames_T
        return torch.where(frames_T < kept, frames_T, kept + (frames_T - kept) % ring)

    def _grow(self, used: int) -> None:
        """Allocates the first `used` slots, doubling the size up to the limit."""
        self._used = max(self._used, used)
        if self._used <= len(self._positions):
            return
        size, ring = max(self._used, 2 * len(self._positions)), self.chunks.ring_frames
        if ring is not None:
            size = min(size, self.chunks.kept + ring)
        new = torch.full((size - len(self._positions),), -1, device="cpu")
        self._positions = torch.cat([self._positions, new])

    @property
    def slot_positions(self) -> Tensor:
        """Frame number in each slot: int64 (S,)."""
        return self._positions[: self._used]

    def prepend(self, module: nn.Module, x_BCT: Tensor, frames: int) -> Tensor:
        """`x_BCT` after the last `frames` frames of the previous step of `module` (zeros at the start)."""
        tail = self._tails.get(module)
        if tail is None:
            tail = x_BCT.new_zeros(*x_BCT.shape[:2], frames)
        x_BCT = torch.cat([tail, x_BCT], dim=-1)
        self._tails[module] = x_BCT[..., x_BCT.shape[-1] - frames :].clone()
        return x_BCT

    def keys_values(self, module: nn.Module, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Stores this step's keys and values; returns all that it attends to, (B, H, S, D) each."""
        size = len(self._positions)
        past = self._past.get(module)
        if past is None or past[0].shape[2] < size:
            grown = [x.new_zeros(*x.shape[:2], size, x.shape[3]) for x in (k_BHTD, v_BHTD)]
            if past is not None:
                for new, old in zip(grown, past, strict=True):
                    new[:, :, : old.shape[2]] = old
            past = self._past[module] = (grown[0], grown[1])
        for buffer, new in zip(past, (k_BHTD, v_BHTD), strict=True):
            buffer[:, :, self._slots] = new
        return past[0][:, :, : self._used], past[1][:, :, : self._used]

    @property
    def bytes(self) -> int:
        """Memory of the state, in bytes."""
        held = [*self._tails.values(), *(x for pair in self._past.values() for x in pair)]
        return sum(x.numel() * x.element_size() for x in held)
