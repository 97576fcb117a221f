"""The conversation of a session as rows: the history contains ids and codes; audio is never encoded again.

    system turn ─ turns of user and assistant ─ head of the reply    the rows of `data.conversation.Renderer`

The assistant's turns keep the rows that the model generated, so that the rows of a later prompt begin with
those of the earlier prompt and its reply, whose keys and values are cached.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lit_moss.data.conversation import Modality, Renderer, system_prompt
from lit_moss.errors import UserError
from lit_moss.llm.generate import modality_after
from lit_moss.llm.replies import ReplyForm, reply_codes, reply_text
from lit_moss.llm.rows import RowFormat
from lit_moss.records import printable

Role = Literal["system", "user", "assistant"]


@dataclass
class Message:
    """One turn of a conversation.

    Args:
        role: system, user or assistant.
        rows: Content: the rows between the head of the turn and its <|im_end|>, including sosp and eosp.
        id: Unique id.
        text: Text of the turn; "" for the user's speech, whose text is unknown.
    """

    role: Role
    rows: list[int]
    id: str = field(default_factory=lambda: f"item_{uuid.uuid4().hex[:24]}")
    text: str = ""

    def codes(self, row_format: RowFormat) -> list[int]:
        """Codes of the turn's speech."""
        return reply_codes(self.rows, row_format)


def _checked(text: str) -> str:
    """The text, checked to be encodable in UTF-8, which tokenizers require.

    Raises:
        UserError: if it contains half of a surrogate pair, as in truncated JSON or bytes of another encoding.
    """
    if printable(text) != text:
        raise UserError(f"the text {printable(text)!r:.80} is not Unicode: expected text in UTF-8")
    return text


class Conversation:
    """Turns in order, from which prompts are built.

    Args:
        renderer: Provides text ids and heads of turns; its form is that of spoken replies.
        instructions: Text to append to the system prompt, as in training.

    Raises:
        UserError: if the instructions are not valid text.
    """

    def __init__(self, renderer: Renderer, instructions: str = "") -> None:
        self.renderer, self.instructions = renderer, _checked(instructions)
        self.messages: list[Message] = []

    @property
    def format(self) -> RowFormat:
        """Row format: ids of text and speech."""
        return self.renderer.row_format

    # --- turns ----------------------------------------------------------------------------------------------

    def add(self, message: Message, after: str | None = None) -> Message:
        """Appends a turn, or inserts it after the turn with the id `after` ("root": at the start)."""
        place = len(self.messages) if after is None else 0 if after == "root" else self._place(after) + 1
        self.messages.insert(place, message)
        return message

    def text_message(self, role: Role, text: str) -> Message:
        """A text turn.

        Raises:
            UserError: if the text is invalid.
        """
        return Message(role, self.renderer.ids(_checked(text)), text=text)

    def speech_message(self, role: Role, codes: Sequence[int], text: str = "") -> Message:
        """A speech turn.

        Raises:
            UserError: if there are no codes.
        """
        if not codes:
            raise UserError("a turn of speech without a single code: expected 80 ms of sound or more")
        return Message(role, self.format.speech(codes), text=text)

    def reply_message(self, rows: Sequence[int], prompt: Sequence[int]) -> Message:
        """The assistant's turn, from rows that the model generated.

        It includes the sosp at the end of the prompt of a direct spoken reply, and excludes the row that ends
        the reply. Speech that was cut off gets an eosp.

        Args:
            rows: Rows of the reply.
            prompt: Rows of its prompt.
        """
        ends = (self.format.im_end_id, self.format.end_id)
        content = list(rows[:-1] if rows and rows[-1] in ends else rows)
        if prompt and prompt[-1] == self.format.sosp_token_id:
            content = [self.format.sosp_token_id, *content]
        if content and modality_after(content[-1], self.format) == "speech":
            if content[-1] == self.format.sosp_token_id:
                content.pop()
            else:
                content.append(self.format.eosp_row)
        return Message("assistant", content, text=self.text_of(content))

    def text_of(self, rows: Sequence[int]) -> str:
        """Text of rows, ignoring speech and special tokens."""
        return self.renderer.tokenizer.decode(reply_text(rows, self.format), skip_special_tokens=True)

    def find(self, item_id: str) -> Message:
        """The turn with this id.

        Raises:
            UserError: if there is none.
        """
        return self.messages[self._place(item_id)]

    def delete(self, item_id: str) -> None:
        """Removes a turn."""
        del self.messages[self._place(item_id)]

    def truncate(self, item_id: str, codes: int) -> None:
        """Keeps the first `codes` codes of a turn's speech, and the text before them."""
        message, kept = self.find(item_id), 0
        for place, row in enumerate(message.rows):
            if self.format.text_vocab_size <= row < self.format.eosp_row:
                kept += 1
                if kept > codes:
                    message.rows = message.rows[:place]
                    if place and message.rows[-1] != self.format.sosp_token_id:
                        message.rows.append(self.format.eosp_row)
                    elif place:
                        message.rows.pop()
                    message.text = self.text_of(message.rows)
                    return

    def _place(self, item_id: str) -> int:
        for place, message in enumerate(self.messages):
            if message.id == item_id:
                return place
        raise UserError(f"no item {item_id!r} in this conversation: give the id of one of its items")

    # --- rows -----------------------------------------------------------------------------------------------

    def prompt(
        self, reply: Modality, form: ReplyForm | None = None, messages: Sequence[Message] | None = None
    ) -> list[int]:
        """Rows up to the start of the reply, equal to those of `Renderer.prompt`.

        Args:
            reply: Modality of the reply.
            form: Form of a spoken reply. Default: that of the renderer.
            messages: Turns to use instead of the conversation's own.
        """
        form = form or self.renderer.form
        rows = self.opening(reply, form, messages) + self.renderer.head("assistant")
        if reply == "speech" and not form.has_text:
            rows.append(self.format.sosp_token_id)
        return rows

    def opening(
        self, reply: Modality, form: ReplyForm | None = None, messages: Sequence[Message] | None = None
    ) -> list[int]:
        """Rows of the system prompt and all turns; arguments as in `prompt`."""
        form = form or self.renderer.form
        messages = list(self.messages if messages is None else messages)
        system = f"{system_prompt(reply, form)} {self.instructions}".strip()
        while messages and messages[0].role == "system":
            system = f"{system} {messages.pop(0).text}".strip()
        rows = self._turn("system", self.renderer.ids(system))
        for message in messages:
            rows += self._turn(message.role, message.rows)
        return rows

    def _turn(self, role: str, content: Sequence[int]) -> list[int]:
        assert self.format.im_end_id is not None  # `Renderer` rejects such tokenizers
        return [*self.renderer.head(role), *content, self.format.im_end_id, *self.renderer.ids("\n")]
