"""Replies that hold text and speech: how rows encode them, and how they are taken apart again.

    direct        sosp c …………………………… eosp <|im_end|>                     speech alone (MOSS-Speech)
    guided        t ……… t sosp c ……… c eosp <|im_end|>                    text, then the same as speech
    interleaved   t*13 sosp c*26 eosp t*13 sosp c*26 eosp …… <|im_end|>   in turns

Generation needs no other rules for them: rows are codes from sosp to eosp and text ids elsewhere, so the
prompt of a guided or an interleaved reply simply ends in text. Where an interleaved reply's text ends, the
rest of its codes is one stretch; where its codes end, the rest of its text follows.
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
    """The form of spoken replies.

    Args:
        name: `direct`, `guided` or `interleaved`.
        text: Text ids of a turn of an interleaved reply.
        codes: Codes of a turn of an interleaved reply.

    Raises:
        UserError: for another name, or a turn without text ids or codes.
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
        """Whether a spoken reply of this form holds its text too."""
        return self.name != "direct"

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "ReplyForm":
        """The form that options of documents ask for; the inverse of `options`."""
        default = cls()
        return cls(
            options.get("reply_form", default.name),
            options.get("interleave_text", default.text),
            options.get("interleave_codes", default.codes),
        )

    def options(self) -> dict[str, Any]:
        """Options of documents that ask for this form, those that change nothing left out."""
        counts = {"interleave_text": self.text, "interleave_codes": self.codes}
        named = {"reply_form": self.name} if self.has_text else {}
        return named | (counts if self.name == "interleaved" else {})

    def rows(self, text_ids: Sequence[int], codes: Sequence[int], row_format: RowFormat) -> list[int]:
        """Rows of a reply of text ids and codes, without <|im_end|>; `direct` takes the codes alone."""
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


# The forms by name, interleaved with GLM-4-Voice's counts.
FORMS: dict[str, ReplyForm] = {name: ReplyForm(name) for name in get_args(FormName)}
DIRECT = FORMS["direct"]


def split_reply(rows: Sequence[int], row_format: RowFormat) -> list[Part]:
    """A reply's text and speech in their order: `("text", ids)` or `("speech", codes)`.

    Each stretch of speech is a part of its own. Borders (sosp, eosp) and the row that ends the reply are in
    no part; a stretch may lack its eosp where generation was cut off. Audio ids above eosp, which no code
    has, are left out.

    Args:
        rows: Rows as `generate` makes them, after the prompt.
        row_format: Format of the rows.
    """
    V = row_format.text_vocab_size
    borders = {row_format.sosp_token_id, row_format.im_end_id, row_format.end_id}
    parts: list[Part] = []
    is_open = False  # whether the next id of the last part's modality continues it
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
    """Text ids of a reply, joined. Decode them together: a border may be inside a character."""
    return [i for modality, ids in split_reply(rows, row_format) if modality == "text" for i in ids]


def reply_codes(rows: Sequence[int], row_format: RowFormat) -> list[int]:
    """Codes of a reply, joined."""
    return [c for modality, codes in split_reply(rows, row_format) if modality == "speech" for c in codes]
