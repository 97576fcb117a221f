"""Conversations -> rows, in any pair of modalities, with the loss mask of supervised fine-tuning.

    <|im_start|> role \\n  content  <|im_end|> \\n         content: text, or one stretch of speech
                           ^^^^^^^^^^^^^^^^^^             of the assistant: what counts

The reply's modality is decided by the prompt alone: the system prompt names it, and the prefix of a spoken
reply ends with sosp. Each piece is turned into ids by itself, so that no id reaches over a border between
them, and a prompt is exactly the beginning of what was trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lit_moss.corpora.conversations import ROLES
from lit_moss.data.interleave import text_ids
from lit_moss.errors import UserError
from lit_moss.llm.rows import RowFormat

Modality = Literal["text", "speech"]
# User's modality and reply's; the same content in each.
PAIRS: dict[str, tuple[Modality, Modality]] = {
    f"{user}-{reply}": (user, reply)
    for user in reversed(get_args(Modality))
    for reply in reversed(get_args(Modality))
}
# The public demo's; facts of the released model.
SYSTEM: dict[Modality, str] = {
    "speech": "You are a helpful voice assistant. Answer the user's questions with spoken responses.",
    "text": "You are a helpful assistant. Answer the user's questions with text.",
}


@dataclass(frozen=True)
class Turn:
    """One turn, in one or both modalities.

    Args:
        role: system, user or assistant.
        text: What is said; None if only heard.
        codes: The same as speech; None if only written.
    """

    role: str
    text: str | None = None
    codes: Sequence[int] | None = None

    def can_be(self, modality: Modality) -> bool:
        """Whether it has this modality."""
        return bool(self.codes if modality == "speech" else self.text)


class Renderer:
    """Turns to rows by one tokenizer.

    Args:
        tokenizer: Of `lit_moss.llm.backbone.load_text_tokenizer`.
        form: Its row format.
    """

    def __init__(self, tokenizer: Any, form: RowFormat) -> None:
        if form.im_start_id is None or form.im_end_id is None:
            raise UserError(
                "the tokenizer has no <|im_start|> and <|im_end|>, conversations need them: take a backbone "
                "that was tuned to chat in ChatML (Qwen, SmolLM2-Instruct)"
            )
        self.tokenizer, self.form = tokenizer, form
        self._im_start, self._im_end = form.im_start_id, form.im_end_id

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
            turns: User and assistant by turns. A leading system turn's text comes behind the system prompt.
            user: Modality of the user's turns.
            reply: Modality of the assistant's turns.
            train_on: `assistant`: its contents and the <|im_end|> behind them; sosp of a spoken reply belongs
                to the prompt, and the line break behind <|im_end|> to nobody. `all`: every row but the first.
            system: System prompt; None takes the reply modality's.

        Raises:
            UserError: if a turn lacks the modality asked for.
        """
        rows: list[int] = []
        mask: list[bool] = []

        def put(ids: Sequence[int], counts: bool) -> None:
            rows.extend(ids)
            mask.extend([counts or train_on == "all"] * len(ids))

        spoken_as: dict[str, Modality] = {"user": user, "assistant": reply}
        system = SYSTEM[reply] if system is None else system
        if turns and turns[0].role == "system":
            system, turns = f"{system} {turns[0].text or ''}".strip(), turns[1:]
        for turn in [Turn("system", system), *turns]:
            modality = spoken_as.get(turn.role, "text")
            own = turn.role == "assistant"
            prefix, content = self._content(turn, modality)
            put([*self._head(turn.role), *prefix], False)
            put([*content, self._im_end], own)
            put(self._ids("\n"), False)
        mask[0] = False
        return rows, mask

    def prompt(
        self,
        turns: Sequence[Turn],
        user: Modality = "text",
        reply: Modality = "text",
        system: str | None = None,
    ) -> list[int]:
        """Rows up to where the reply begins, sosp of a spoken one included: a prefix of `render`'s rows."""
        rows, _ = self.render(turns, user, reply, system=system)
        return [*rows, *self._head("assistant"), *([self.form.sosp_token_id] if reply == "speech" else [])]

    def _ids(self, text: str) -> list[int]:
        return text_ids(self.tokenizer, self.form, text)

    def _head(self, role: str) -> list[int]:
        if role not in ROLES:
            raise UserError(f"a turn of {role!r}, expected one of {', '.join(ROLES)}")
        return [self._im_start, *self._ids(f"{role}\n")]

    def _content(self, turn: Turn, modality: Modality) -> tuple[list[int], list[int]]:
        """What of a turn belongs to the prompt (sosp), and the rest."""
        if not turn.can_be(modality):
            raise UserError(
                f"a turn of {turn.role} has no {modality} ({(turn.text or 'only speech')[:40]!r}): leave out "
                f"the pairs that need it"
            )
        if modality == "speech":
            rows = self.form.speech(turn.codes or [])
            return rows[:1], rows[1:]
        return [], self._ids(turn.text or "")
