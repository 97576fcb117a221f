"""A request of chat completions as turns: what was said before gets the rows that it had then.

Every request brings its whole conversation. A spoken reply is referred to by its id and never encoded again;
a text that the model wrote keeps the ids that it chose; a sound file that was heard before keeps its codes.
So a prompt begins with the rows of the one before, which the engine finds in its caches.
"""

import asyncio
import hashlib

from lit_moss.audio import rates
from lit_moss.errors import UserError
from lit_moss.llm.rows import RowFormat
from lit_moss.serve.api_errors import bad_request
from lit_moss.serve.chat_request import (
    AssistantMessage,
    AudioPart,
    ChatRequest,
    RefusalPart,
    SystemMessage,
    UserMessage,
)
from lit_moss.serve.conversation import Message
from lit_moss.serve.engine import Engine, Session
from lit_moss.serve.kept import Kept
from lit_moss.serve.sounds import from_base64, read_upload

KEPT_SEC = 3600.0  # stated to clients as `expires_at`
# Characters for each position of the model: a longer prompt cannot fit, and is not worth tokenizing.
MOST_CHARACTERS_A_ROW = 32
TOO_LONG = "context_length_exceeded"


class ChatConversations:
    """Turns of requests, and rows that later requests refer to.

    Args:
        engine: Encodes sound.
    """

    def __init__(self, engine: Engine) -> None:
        self._limits = engine.limits
        self._most_rows = engine.model.lm.config.max_context
        most = engine.limits.max_replies_kept
        self._spoken: Kept[list[int]] = Kept(most, KEPT_SEC)  # rows by the id of the reply
        self._written: Kept[list[int]] = Kept(most, KEPT_SEC)  # rows by asker and text
        self._heard: Kept[list[int]] = Kept(most, KEPT_SEC)  # codes by the hash of asker and file

    def keep(self, session: Session, message: Message, audio_id: str | None) -> None:
        """Keeps the rows of a reply: by its id if it is spoken, else by its text and who asked."""
        if audio_id is not None:
            self._spoken.put(audio_id, message.rows)
        elif message.text:
            self._written.put(f"{session.scope}\n{message.text}", message.rows)

    async def turns(self, session: Session, asked: ChatRequest) -> list[Message]:
        """The turns of a request.

        Args:
            session: Whose turns they become.
            asked: The request.

        Raises:
            ApiError: for sound that cannot be used, an unknown reply, or more than the model can take.
        """
        self._check_length(asked)
        turns: list[Message] = []
        seconds = 0.0
        for place, message in enumerate(asked.messages):
            where = f"messages[{place}]"
            if isinstance(message, AssistantMessage):
                turns.append(await self._reply(session, message, where))
            else:
                turns.append(await self._turn(session, message, where))
            seconds += _speech_sec(turns[-1], session.conversation.format)
            self._check_seconds(seconds, where)
        return turns

    async def _turn(self, session: Session, message: UserMessage | SystemMessage, where: str) -> Message:
        conversation, rows, texts = session.conversation, [], []
        for number, part in enumerate(message.content):
            if isinstance(part, AudioPart):
                codes = await self._codes(session, part, f"{where}.content[{number}].input_audio.data")
                rows += conversation.speech_message("user", codes).rows
            else:
                texts.append(part.text)
                rows += await asyncio.to_thread(conversation.renderer.ids, part.text)
        role = "user" if isinstance(message, UserMessage) else "system"
        return Message(role, rows, text="\n".join(texts))

    async def _reply(self, session: Session, message: AssistantMessage, where: str) -> Message:
        if message.audio is not None:
            rows = self._spoken.get(message.audio.id)
            if rows is None:
                reason = "it was not made here, or is no longer kept"
                raise bad_request(f"no spoken reply {message.audio.id!r}: {reason}", f"{where}.audio.id",
                                  "audio_not_found")  # fmt: skip
            return Message("assistant", rows)
        parts = message.content or []
        text = "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in parts)
        rows = self._written.get(f"{session.scope}\n{text}")
        if rows is None:
            rows = await asyncio.to_thread(session.conversation.renderer.ids, text)
        return Message("assistant", rows, text=text)

    async def _codes(self, session: Session, part: AudioPart, where: str) -> list[int]:
        """Codes of a sound file."""
        data = part.input_audio.data
        key = hashlib.sha256(f"{session.scope}\n{data}".encode()).hexdigest()
        codes = self._heard.get(key)
        if codes is not None:
            return codes
        turn = session.listen(rates.TOKENIZER_RATE_HZ)
        try:
            turn.push(
                await asyncio.to_thread(lambda: read_upload(from_base64(data), self._limits.max_turn_sec))
            )
            codes = await asyncio.wrap_future(turn.finish())
            if not codes:
                raise UserError(f"{turn.seconds:.2f} s of sound: expected 0.08 s or more")
        except UserError as error:
            raise bad_request(str(error), where, "invalid_audio") from None
        self._heard.put(key, codes)
        return codes

    def _check_length(self, asked: ChatRequest) -> None:
        """Refuses texts that cannot fit before they are tokenized."""
        count = sum(
            len(part.refusal if isinstance(part, RefusalPart) else part.text)
            for message in asked.messages
            for part in message.content or []
            if not isinstance(part, AudioPart)
        )
        if self._most_rows is not None and count > self._most_rows * MOST_CHARACTERS_A_ROW:
            raise bad_request(
                f"{count} characters, the model has positions for {self._most_rows} rows: shorten the "
                "conversation", "messages", TOO_LONG,
            )  # fmt: skip

    def _check_seconds(self, seconds: float, where: str) -> None:
        """Refuses sound that cannot fit before more of it is encoded."""
        if self._most_rows is not None and seconds / rates.SECONDS_PER_CODE > self._most_rows:
            raise bad_request(
                f"{seconds:.0f} s of speech, the model has positions for {self._most_rows} rows: shorten the "
                "conversation", where, TOO_LONG,
            )  # fmt: skip


def _speech_sec(message: Message, row_format: RowFormat) -> float:
    return len(message.codes(row_format)) * rates.SECONDS_PER_CODE
