"""Speech recognition by CTC on quantized frames: character vocabulary, causal head, decoding and loss.

English runs at 14 characters a second, codes at 12.5 a second. CTC needs at least one frame per character
(two if a character repeats), so the head first spreads each code over four frames (50 Hz).
Shapes: B batch, N codes, L = 4 N head frames, D code width, W head width, V vocabulary including blank and
unknown.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lit_moss.audio import rates
from lit_moss.codec.encoder import EncoderLayer, sinusoids

BLANK, UNKNOWN = 0, 1
UNKNOWN_MARK = "\ufffd"


@dataclass(frozen=True)
class CharVocabulary:
    """Characters of the transcripts; id 0 is CTC's blank, id 1 stands for every character not listed.

    Args:
        characters: Listed characters, in the order of their ids, which start at 2.
    """

    characters: str

    @classmethod
    def from_texts(cls, texts: Iterable[str], min_count: int = 1) -> "CharVocabulary":
        """All characters that occur at least `min_count` times in normalised texts, sorted."""
        counts = Counter(character for text in texts for character in text)
        return cls("".join(sorted(c for c, n in counts.items() if n >= min_count)))

    def __len__(self) -> int:
        return len(self.characters) + 2

    def encode(self, text: str) -> list[int]:
        """Ids of the characters of a normalised text."""
        places = (self.characters.find(character) for character in text)
        return [UNKNOWN if place < 0 else place + 2 for place in places]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, ignoring blanks; unknown characters become U+FFFD."""
        return "".join(UNKNOWN_MARK if i == UNKNOWN else self.characters[i - 2] for i in ids if i != BLANK)


def frames_needed(ids: Sequence[int]) -> int:
    """Minimum number of frames for CTC labels: one per label, and a blank between equal neighbours."""
    return len(ids) + sum(a == b for a, b in pairwise(ids))


def greedy(log_probs_BLV: Tensor, frames_B: Tensor) -> list[list[int]]:
    """Best path of each item within its frames, with repeats merged and blanks removed."""
    best_BL = log_probs_BLV.argmax(dim=-1)
    paths = (path[:n].unique_consecutive() for path, n in zip(best_BL.cpu(), frames_B.tolist(), strict=True))
    return [path[path != BLANK].tolist() for path in paths]


def ctc_loss(
    log_probs_BLV: Tensor, frames_B: Tensor | Sequence[int], labels: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Mean over the batch of -log p(labels) / len(labels), (), and which items fit, bool (B,).

    An item whose labels do not fit its frames has probability 0 and an infinite loss (Graves et al. 2006: the
    sum is over an empty set of paths). It is excluded from the mean and marked False. The length of an empty
    label list is taken as one.

    Args:
        log_probs_BLV: Log-probabilities (B, L, V).
        frames_B: Number of frames of each item; pass Python ints to avoid waiting for a GPU.
        labels: Ids of each item.
    """
    device = log_probs_BLV.device
    frames = frames_B.tolist() if isinstance(frames_B, Tensor) else list(frames_B)
    fitting = fitting_items(frames, labels)
    fits_B = torch.zeros(len(labels), dtype=torch.bool)
    fits_B[fitting] = True
    fits_B = fits_B.to(device, non_blocking=True)
    if not fitting:
        return log_probs_BLV.sum() * 0.0, fits_B
    lengths = [len(ids) for ids in labels]
    flat = torch.tensor([i for ids in labels for i in ids], dtype=torch.long)
    log_probs_LBV, flat = log_probs_BLV.float().transpose(0, 1), flat.to(device, non_blocking=True)
    # Lengths as plain numbers, an overload that `F.ctc_loss` does not declare. Reduction 0: one loss per
    # item.
    loss_B = torch.ctc_loss(log_probs_LBV, flat, frames, lengths, BLANK, 0, True)
    loss_B = loss_B / torch.tensor(lengths).clamp(min=1).to(device, non_blocking=True)
    return loss_B[torch.tensor(fitting).to(device, non_blocking=True)].mean(), fits_B


def fitting_items(frames: Sequence[int], labels: Sequence[Sequence[int]]) -> list[int]:
    """Indices of the items whose labels fit their frames."""
    return [i for i, (n, ids) in enumerate(zip(frames, labels, strict=True)) if frames_needed(ids) <= n]


class CTCHead(nn.Module):
    """Predicts characters from code vectors: upsampling by four, causal transformer layers, a linear layer.

    The head is causal too, so that a transcript can be streamed along with the codes; CTC may emit a
    character a few frames late.
    """

    positions: Tensor

    def __init__(
        self, code_width: int, vocabulary_size: int, width: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(code_width)
        self.upsample = nn.Linear(code_width, rates.HIDDEN_PER_CODE * width)
        self.dropout = nn.Dropout(dropout)
        stack = [EncoderLayer(width, heads, 4 * width) for _ in range(layers)]
        self.layers = nn.ModuleList(stack)
        self.final_norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, vocabulary_size)
        self.frame_norm = nn.LayerNorm(code_width)
        self.frame_proj = nn.Linear(code_width, vocabulary_size)
        longest = rates.MAX_SEGMENT_SAMPLES // rates.SAMPLES_PER_HIDDEN
        self.register_buffer("positions", sinusoids(longest, width), persistent=False)
        # With residual branches that start at zero, the head is initially linear and leaves CTC's plateau
        # sooner.
        for layer in stack:
            for linear in (layer.self_attn.out_proj, layer.fc2):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> log-probabilities (B, 4 N, V), float32."""
        x_BLW = self.upsample(self.norm(x_BND)).unflatten(-1, (rates.HIDDEN_PER_CODE, -1)).flatten(1, 2)
        x_BLW = self.dropout(x_BLW + self.positions[: x_BLW.shape[1]])
        for layer in self.layers:
            x_BLW = layer(x_BLW)[0]
        return self.proj(self.final_norm(x_BLW)).float().log_softmax(dim=-1)

    def from_frames(self, hidden_BLD: Tensor) -> Tensor:
        """Characters from hidden frames before pooling, for training: (B, L, D) -> (B, L, V), float32."""
        return self.frame_proj(self.frame_norm(hidden_BLD)).float().log_softmax(dim=-1)
