"""Converts conversations to rows, in any pair of modalities, with the loss mask of supervised fine-tuning.

    <|im_start|> role \\n  content  <|im_end|> \\n         content: text, or one stretch of speech
                           ^^^^^^^^^^^^^^^^^^             assistant turns: these are targets

The prompt alone determines the reply's modality: the system prompt names it, and the prefix of a spoken reply
ends with sosp. Spoken replies that also contain text (`lit_moss.llm.replies`) have separate system prompts;
their prefix is that of a text reply, and all their rows are targets. Every piece is tokenized separately, so
that no id spans two pieces and a prompt is exactly a prefix of a training example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lit_moss.corpora.conversations import ROLES
from lit_moss.data.interleave import text_ids
from lit_moss.errors import UserError
from lit_moss.llm.replies import DIRECT, FormName, ReplyForm
from lit_moss.llm.rows import RowFormat

Modality = Literal["text", "speech"]
# Pair -> modality of the user's turns, modality of the replies.
PAIRS: dict[str, tuple[Modality, Modality]] = {
    f"{user}-{reply}": (user, reply)
    for user in reversed(get_args(Modality))
    for reply in reversed(get_args(Modality))
}
# System prompts of the released model's public demo.
SYSTEM: dict[Modality, str] = {
    "speech": "You are a helpful voice assistant. Answer the user's questions with spoken responses.",
    "text": "You are a helpful assistant. Answer the user's questions with text.",
}
# System prompts for spoken replies, by form.
SPEECH_SYSTEM: dict[FormName, str] = {
    "direct": SYSTEM["speech"],
    "guided": (
        "You are a helpful voice assistant. Answer the user's questions with text first, then with speech."
    ),
    "interleaved": (
        "You are a helpful voice assistant. Answer the user's questions with text and speech in turns."
    ),
}


def system_prompt(reply: Modality, form: ReplyForm = DIRECT) -> str:
    """The system prompt that requests replies of this modality and form."""
    return SPEECH_SYSTEM[form.name] if reply == "speech" else SYSTEM["text"]


def modalities_needed(role: str, user: Modality, reply: Modality, form: ReplyForm = DIRECT) -> list[Modality]:
    """Modalities in which a turn of this role must be available.

    Args:
        role: Role of the turn.
        user: Modality of the user's turns.
        reply: Modality of the assistant's turns.
        form: Form of spoken replies.
    """
    if role == "assistant" and reply == "speech" and form.has_text:
        return ["text", "speech"]
    modality_of_role: dict[str, Modality] = {"user": user, "assistant": reply}
    return [modality_of_role.get(role, "text")]


@dataclass(frozen=True)
class Turn:
    """A turn in one or both modalities.

    Args:
        role: system, user or assistant.
        text: Text of the turn; None: it exists as speech only.
        codes: Codes of the same content as speech; None: it exists as text only.
    """

    role: str
    text: str | None = None
    codes: Sequence[int] | None = None

    def can_be(self, modality: Modality) -> bool:
        """Whether the turn is available in this modality."""
        return bool(self.codes if modality == "speech" else self.text)


class Renderer:
    """Converts turns to rows.

    Args:
        tokenizer: Text tokenizer, see `lit_moss.llm.backbone.load_text_tokenizer`.
        row_format: Row format: ids of text and speech.
        form: Form of spoken replies.

    Raises:
        UserError: if the text tokenizer lacks the tokens for turns.
    """

    def __init__(self, tokenizer: Any, row_format: RowFormat, form: ReplyForm = DIRECT) -> None:
        if row_format.im_start_id is None or row_format.im_end_id is None:
            raise UserError(
                "the text tokenizer has no <|im_start|> and <|im_end|>, which conversations need: take a "
                "backbone that was tuned to chat in ChatML (Qwen, SmolLM2-Instruct)"
            )
        self.tokenizer, self.row_format, self.form = tokenizer, row_format, form
        self._im_start, self._im_end = row_format.im_start_id, row_format.im_end_id

    def render(
        self,
        turns: Sequence[Turn],
        user: Modality = "text",
        reply: Modality = "text",
        train_on: Literal["assistant", "all"] = "assistant",
        system: str | None = None,
    ) -> tuple[list[int], list[bool]]:
        """Rows and loss mask of a conversation.

        Args:
            turns: User and assistant turns. The text of a leading system turn is appended to the system
                prompt.
            user: Modality of the user's turns.
            reply: Modality of the assistant's turns.
            train_on: `assistant`: the targets are the contents of the assistant's turns and the <|im_end|>
                after them, but not the sosp of a direct spoken reply, which belongs to the prompt, nor the
                line break after <|im_end|>. `all`: all rows but the first are targets.
            system: System prompt. None: the default for the reply's modality and form.

        Raises:
            UserError: if a turn lacks the requested modality.
        """
        rows: list[int] = []
        mask: list[bool] = []

        def append(ids: Sequence[int], is_target: bool) -> None:
            rows.extend(ids)
            mask.extend([is_target or train_on == "all"] * len(ids))

        system = system_prompt(reply, self.form) if system is None else system
        if turns and turns[0].role == "system":
            system, turns = f"{system} {turns[0].text or ''}".strip(), turns[1:]
        for turn in [Turn("system", system), *turns]:
            prefix, content = self._content(turn, modalities_needed(turn.role, user, reply, self.form))
            append([*self.head(turn.role), *prefix], False)
            append([*content, self._im_end], turn.role == "assistant")
            append(self.ids("\n"), False)
        mask[0] = False
        return rows, mask

    def prompt(
        self,
        turns: Sequence[Turn],
        user: Modality = "text",
        reply: Modality = "text",
        system: str | None = None,
    ) -> list[int]:
        """Rows up to the start of the reply, a prefix of `render`'s rows. Includes the sosp of a direct
        spoken reply."""
        rows, _ = self.render(turns, user, reply, system=system)
        is_direct_speech = reply == "speech" and not self.form.has_text
        prefix = [self.row_format.sosp_token_id] if is_direct_speech else []
        return [*rows, *self.head("assistant"), *prefix]

    def ids(self, text: str) -> list[int]:
        """Text ids of a piece of text."""
        return text_ids(self.tokenizer, self.row_format, text)

    def head(self, role: str) -> list[int]:
        """Rows that begin a turn: <|im_start|>, the role, and a line break.

        Raises:
            UserError: if the role is unknown.
        """
        if role not in ROLES:
            raise UserError(f"a turn of {role!r}, expected one of {', '.join(ROLES)}")
        return [self._im_start, *self.ids(f"{role}\n")]

    def _content(self, turn: Turn, modalities: Sequence[Modality]) -> tuple[list[int], list[int]]:
        """Rows of a turn that belong to the prompt (sosp), and the remaining rows."""
        if missing := [modality for modality in modalities if not turn.can_be(modality)]:
            raise UserError(
                f"a turn of {turn.role} has no {missing[0]} ({(turn.text or 'only speech')[:40]!r}): leave "
                "out the pairs that need it"
            )
        if len(modalities) == 2:
            return [], self.form.rows(self.ids(turn.text or ""), turn.codes or [], self.row_format)
        if modalities[0] == "speech":
            rows = self.row_format.speech(turn.codes or [])
            return rows[:1], rows[1:]
        return [], self.ids(turn.text or "")
