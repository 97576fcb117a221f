"""Replies that contain text and speech: how they are encoded as rows, and how they are decoded.

    direct        sosp c …………………………… eosp <|im_end|>                     speech alone (MOSS-Speech)
    guided        t ……… t sosp c ……… c eosp <|im_end|>                    text, then the same as speech
    interleaved   t*13 sosp c*26 eosp t*13 sosp c*26 eosp …… <|im_end|>   in turns

Generation needs no further rules: rows are codes from sosp to eosp and text ids elsewhere, so guided and
interleaved replies simply begin with text. When the text of an interleaved reply ends, its remaining codes
form one stretch; when the codes end, the remaining text follows.
Sources: `guided` is the chain of modality of SpeechGPT (arXiv:2305.11000), `interleaved` the streaming
template of GLM-4-Voice (arXiv:2412.02612): 13 text ids, then 26 codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lit_moss.errors import UserError
from lit_moss.llm.branches import Modality
from lit_moss.llm.rows import RowFormat

FormName = Literal["direct", "guided", "interleaved"]
Part = tuple[Modality, list[int]]  # text ids, or codes


@dataclass(frozen=True)
class ReplyForm:
    """Form of spoken replies.

    Args:
        name: `direct`, `guided` or `interleaved`.
        text: Text ids per turn of an interleaved reply.
        codes: Codes per turn of an interleaved reply.

    Raises:
        UserError: if the name is unknown, or a turn has no text ids or no codes.
    """

    name: FormName = "direct"
    text: int = 13
    codes: int = 26

    def __post_init__(self) -> None:
        if self.name not in get_args(FormName):
            raise UserError(f"reply_form is {self.name!r}, expected {', '.join(get_args(FormName))}")
        if self.text < 1 or self.codes < 1:
            raise UserError(
                f"interleave_text is {self.text} and interleave_codes is {self.codes}, expected 1 or more"
            )

    @property
    def has_text(self) -> bool:
        """Whether a spoken reply of this form also contains its text."""
        return self.name != "direct"

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "ReplyForm":
        """Creates the form from the options of token documents; the inverse of `options`."""
        default = cls()
        return cls(
            options.get("reply_form", default.name),
            options.get("interleave_text", default.text),
            options.get("interleave_codes", default.codes),
        )

    def options(self) -> dict[str, Any]:
        """Options of token documents that select this form, without those that equal the defaults."""
        counts = {"interleave_text": self.text, "interleave_codes": self.codes}
        named = {"reply_form": self.name} if self.has_text else {}
        return named | (counts if self.name == "interleaved" else {})

    def rows(self, text_ids: Sequence[int], codes: Sequence[int], row_format: RowFormat) -> list[int]:
        """Rows of a reply from its text ids and codes, without <|im_end|>; `direct` uses the codes only."""
        if self.name == "direct":
            return row_format.speech(codes)
        if self.name == "guided":
            return [*text_ids, *row_format.speech(codes)]
        rows: list[int] = []
        text_ids, codes = list(text_ids), list(codes)
        while text_ids:
            rows += text_ids[: self.text]
            text_ids = text_ids[self.text :]
            count = self.codes if text_ids else len(codes)
            if codes[:count]:
                rows += row_format.speech(codes[:count])
            codes = codes[count:]
        return rows + (row_format.speech(codes) if codes else [])


# The forms by name; the interleaved one has GLM-4-Voice's counts.
FORMS: dict[str, ReplyForm] = {name: ReplyForm(name) for name in get_args(FormName)}
DIRECT = FORMS["direct"]


def split_reply(rows: Sequence[int], row_format: RowFormat) -> list[Part]:
    """The text and speech of a reply, in order: `("text", ids)` or `("speech", codes)`.

    Each stretch of speech is a separate part. The borders (sosp, eosp) and the row that ends the reply are
    not included; a stretch may lack eosp if generation was cut off. Audio ids above eosp, which are not
    codes, are dropped.

    Args:
        rows: Rows that `generate` returned, after the prompt.
        row_format: Row format: ids of text and speech.
    """
    V = row_format.text_vocab_size
    borders = {row_format.sosp_token_id, row_format.im_end_id, row_format.end_id}
    parts: list[Part] = []
    is_open = False  # whether the next id of the same modality continues the last part
    for row in rows:
        if row in borders or row >= row_format.eosp_row:
            is_open = False
            continue
        modality: Modality = "text" if row < V else "speech"
        if not is_open or parts[-1][0] != modality:
            parts.append((modality, []))
        parts[-1][1].append(row if modality == "text" else row - V)
        is_open = True
    return parts


def reply_text(rows: Sequence[int], row_format: RowFormat) -> list[int]:
    """All text ids of a reply. Decode them in one call: a border may split a character."""
    return [i for modality, ids in split_reply(rows, row_format) if modality == "text" for i in ids]


def reply_codes(rows: Sequence[int], row_format: RowFormat) -> list[int]:
    """All codes of a reply."""
    return [c for modality, codes in split_reply(rows, row_format) if modality == "speech" for c in codes]
