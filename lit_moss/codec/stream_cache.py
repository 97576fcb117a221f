"""Masks of chunked attention, and what a causal network carries from one chunk to the next.

Attention in the flow decoder is causal by chunks: a frame sees its whole chunk and what came before it.

    frame j is seen by frame i  <=>  j < (floor(i / c) + 1) c                       (chunk of c frames)
                                and  j >= (floor(i / c) - left) c  or  j < kept     (where history is bounded)

The second line is ours: without it a stream's cost and memory grow with its length. `kept` frames at the
start (the prompt: the voice to speak in) stay in sight however long the stream.

Shapes: B batch, H heads, T frames of a chunk, S slots of the cache, D width of a head, C channels.
"""

import torch
from torch import Tensor, nn


def chunk_mask(
    frames: int, chunk: int, device: torch.device, left_chunks: int | None = None, kept: int = 0
) -> Tensor:
    """Which keys (columns) each query (row) sees: bool (T, T); see the head of this file.

    Args:
        frames: T.
        chunk: Frames of a chunk.
        device: Where to make it.
        left_chunks: Chunks seen before a frame's own; None sees all.
        kept: Frames at the start that every frame sees.
    """
    i = torch.arange(frames, device=device)[:, None]
    j = torch.arange(frames, device=device)[None]
    seen = j < (i // chunk + 1) * chunk
    if left_chunks is not None:
        seen &= (j >= (i // chunk - left_chunks) * chunk) | (j < kept)
    return seen


def length_mask(lengths_B: Tensor, longest: int) -> Tensor:
    """Which frames of a padded batch are real: bool (B, T)."""
    return torch.arange(longest, device=lengths_B.device)[None] < lengths_B[:, None]


def seen_keys(
    lengths_B: Tensor, longest: int, chunk: int | None, left_chunks: int | None, kept: int
) -> Tensor:
    """Keys that each query sees: bool (B, 1, T, T), or (B, 1, 1, T) without chunks."""
    seen = length_mask(lengths_B, longest)[:, None, None]
    if chunk is not None:
        seen = seen & chunk_mask(longest, chunk, lengths_B.device, left_chunks, kept)
    return seen


class StreamCache:
    """Convolution tails, keys and values of all layers of one rate, for one stream.

    A step of a stream is one chunk: `begin(n)`, then the layers, each calling `before` or `keys_values` once.
    Keys and values lie in ring buffers and are written in place, so a step copies one chunk, not the history:
    for attention without positions the order of keys is free, and the others ask `slot_positions`.

    Args:
        chunk: Frames of a chunk; every step but the last has as many.
        left_chunks: Chunks of history, None for all (memory then grows with the stream).
        kept: Frames at the start that stay.
    """

    def __init__(self, chunk: int, left_chunks: int | None = None, kept: int = 0) -> None:
        self.chunk, self.left_chunks, self.kept = chunk, left_chunks, kept
        self.frames = 0  # frames of the steps before this one
        self._tails: dict[nn.Module, Tensor] = {}
        self._past: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        # On the CPU, where sizes are decided from them: nothing waits for the device.
        self._positions = torch.full((0,), -1, device="cpu")
        self._slots = torch.zeros(0, dtype=torch.long, device="cpu")
        self._used = 0
        self.positions = torch.zeros(0, dtype=torch.long, device="cpu")  # frame numbers of this step
        self.seen: Tensor | None = None  # slots that this step sees: bool (1, S), None for all

    def begin(self, frames: int, device: torch.device) -> None:
        """Starts a step of `frames` frames, at most a chunk."""
        if not 0 < frames <= self.chunk:
            raise ValueError(f"a step of {frames} frames, expected 1 to {self.chunk}")
        if self.frames % self.chunk:
            raise ValueError("a step after a part of a chunk: that one was the stream's last")
        new = torch.arange(self.frames, self.frames + frames, device="cpu")
        if self.left_chunks is None:
            slots = new
        else:
            ring = (self.left_chunks + 1) * self.chunk
            slots = torch.where(new < self.kept, new, self.kept + (new - self.kept) % ring)
        self._used = max(self._used, int(slots.max()) + 1)
        if self._used > len(self._positions):
            size = max(self._used, 2 * len(self._positions))
            if self.left_chunks is not None:
                size = min(size, self.kept + (self.left_chunks + 1) * self.chunk)
            self._positions = torch.cat(
                [self._positions, torch.full((size - len(self._positions),), -1, device="cpu")]
            )
        self._positions[slots] = new
        self._slots = slots.to(device, non_blocking=True)
        self.positions = new
        oldest = self.frames - (self.left_chunks or 0) * self.chunk
        known = self._positions[: self._used]
        visible = (known >= 0) & ((known >= oldest) | (known < self.kept) | (self.left_chunks is None))
        self.seen = None if bool(visible.all()) else visible[None].to(device, non_blocking=True)
        self.frames += frames

    @property
    def slot_positions(self) -> Tensor:
        """Frame number in each slot: int64 (S,)."""
        return self._positions[: self._used]

    def before(self, module: nn.Module, x_BCT: Tensor, frames: int) -> Tensor:
        """`x_BCT` behind the last `frames` frames that `module` was given (zeros at the start)."""
        tail = self._tails.get(module)
        if tail is None:
            tail = x_BCT.new_zeros(*x_BCT.shape[:2], frames)
        x_BCT = torch.cat([tail, x_BCT], dim=-1)
        self._tails[module] = x_BCT[..., x_BCT.shape[-1] - frames :].clone()
        return x_BCT

    def keys_values(self, module: nn.Module, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all that this step sees, after adding its own: (B, H, S, D) each."""
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
        """Memory held."""
        held = [*self._tails.values(), *(x for pair in self._past.values() for x in pair)]
        return sum(x.numel() * x.element_size() for x in held)
