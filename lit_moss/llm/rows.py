"""The token format: a row is one integer, either a text id or `text_vocab_size + audio id`.

    text   sosp  mpad  mpad  …  mpad  mpad        a stretch of n codes takes n + 2 rows
    audio  apad  c_1   c_2   …  c_n   eosp
    row    sosp  V+c_1 V+c_2 …  V+c_n V+eosp      V = text_vocab_size

The two channels are the released model's grid (B, L, 2), which is used only to read or write its format. A
row is a speech row if and only if its text channel is modality_pad: audio_pad is also a legal code and
therefore does not identify text.
Shapes: B sequences, L rows.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowFormat:
    """The ids that give rows their meaning, taken from a tokenizer and a config, never hard-coded.

    Args:
        text_vocab_size: Number of text ids; smaller rows are text ids. V in the drawing.
        audio_vocab_size: Number of audio ids: codes, then eosp, then unused ids.
        sosp_token_id: Text id after which speech starts.
        eosp_token_id: Audio id that ends speech; equal to the number of codes.
        modality_pad_token_id: Text id of a speech row in the grid; it never occurs as a row.
        audio_pad_token_id: Audio id of a text row in the grid.
        im_start_id: Text id that starts a turn; None: the tokenizer has none.
        im_end_id: Text id that ends a turn.
        end_id: Text id that ends a document.
    """

    text_vocab_size: int
    audio_vocab_size: int
    sosp_token_id: int
    eosp_token_id: int
    modality_pad_token_id: int
    audio_pad_token_id: int
    im_start_id: int | None = None
    im_end_id: int | None = None
    end_id: int | None = None

    @property
    def vocab_size(self) -> int:
        """Equals `text_vocab_size`, under the name used in transformers' configs."""
        return self.text_vocab_size

    @property
    def eosp_row(self) -> int:
        """The row that ends a stretch of speech."""
        return self.text_vocab_size + self.eosp_token_id

    def speech(self, codes: Sequence[int]) -> list[int]:
        """A stretch of speech: sosp, the codes, eosp; n codes -> n + 2 rows.

        Raises:
            ValueError: if an id is not a code.
        """
        if codes and not 0 <= min(codes) <= max(codes) < self.eosp_token_id:
            raise ValueError(
                f"codes from {min(codes)} to {max(codes)}, expected 0 to {self.eosp_token_id - 1}"
            )
        return [self.sosp_token_id, *(self.text_vocab_size + int(c) for c in codes), self.eosp_row]

    def codes(self, rows: Sequence[int]) -> list[int]:
        """The codes among rows, without eosp and unused ids."""
        V = self.text_vocab_size
        return [row - V for row in rows if V <= row < self.eosp_row]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """16 hex digits; a model and its documents must agree."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


class HasIds(Protocol):
    """Ids for converting between rows and grid: a `RowFormat`, or a released model's config."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def modality_pad_token_id(self) -> int: ...
    @property
    def audio_pad_token_id(self) -> int: ...


def to_grid(rows: Tensor, ids: HasIds) -> Tensor:
    """Rows (…, L) -> the released model's grid (…, L, 2), text channel first."""
    speech = rows >= ids.vocab_size
    text = torch.where(speech, ids.modality_pad_token_id, rows)
    audio = torch.where(speech, rows - ids.vocab_size, ids.audio_pad_token_id)
    return torch.stack([text, audio], dim=-1)


def from_grid(grid: Tensor, ids: HasIds) -> Tensor:
    """Grid (…, L, 2) -> rows (…, L); only the text channel distinguishes speech from text."""
    text, audio = grid.unbind(-1)
    return torch.where(text == ids.modality_pad_token_id, audio + ids.vocab_size, text)


def default_eosp(audio_vocab_size: int) -> int:
    """The eosp id of a speech vocabulary of known size, by the released model's rule.

    The rule: codes and eosp, rounded up to a multiple of 128 (16,384 codes -> 16,512 ids), so eosp is the
    largest multiple of 128 below the size. Below 129 ids it is the last one.
    """
    return 128 * ((audio_vocab_size - 1) // 128) or audio_vocab_size - 1


def audio_vocab_for(codebook_size: int) -> int:
    """Number of audio ids for a codebook: codes and eosp, rounded up to a multiple of 128. Inverse of
    `default_eosp` for multiples of 128."""
    return -(-(codebook_size + 1) // 128) * 128
