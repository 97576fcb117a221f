"""Items of a Realtime conversation as clients see them, in addition to the rows that the model reads.

Audio is never sent back: an item shows its text, and `Conversation` holds its codes.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lit_moss.audio import rates
from lit_moss.errors import UserError
from lit_moss.serve.conversation import Message, Role
from lit_moss.serve.engine import Session
from lit_moss.serve.realtime_events import Json, Refused, new_id
from lit_moss.serve.realtime_session import MAX_TEXT
from lit_moss.serve.sounds import read_pcm16

MAX_ITEMS = 1000  # per session
MAX_PARTS = 8  # per item; with `MAX_TEXT` it limits how long the tokenizer blocks the event loop
MAX_ENCODING = 8  # speech turns of a session that wait for their codes
MAX_APPEND_BYTES = 15 * 2**20  # of audio in one event, as in OpenAI's interface
MS_OF_CODE = round(1000 * rates.SECONDS_PER_CODE)

ROLES: tuple[Role, ...] = get_args(Role)
_TEXT_PARTS = {"user": "input_text", "system": "input_text", "assistant": "output_text"}
_SOUND_PARTS = {"user": "input_audio", "assistant": "output_audio"}
Part = list[int] | Future[list[int]]  # rows of text, or a future of codes


@dataclass
class Item:
    """One item of a conversation.

    Args:
        message: Its turn in the conversation.
        content: Its content parts, as clients see them.
        status: in_progress, completed or incomplete.
        filling: Task that fills in the rows of speech; its result is an error message or "".
    """

    message: Message
    content: list[Json]
    status: Literal["in_progress", "completed", "incomplete"] = "completed"
    filling: "asyncio.Task[str] | None" = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """Id of the item."""
        return self.message.id

    def shown(self) -> Json:
        """The item as shown in events."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.message.role,
            "content": [dict(part) for part in self.content],
        }


class History:
    """Items of a session, kept in sync with its conversation.

    Args:
        session: Session of the engine.
        on_error: Called with the error if speech could not be encoded.
    """

    def __init__(self, session: Session, on_error: Callable[[Refused], None]) -> None:
        self.session, self._on_error = session, on_error
        self._items: dict[str, Item] = {}
        self.conversation_id = new_id("conv")

    def close(self) -> None:
        """Cancels all tasks that fill in codes."""
        for item in self._items.values():
            if item.filling is not None:
                item.filling.cancel()

    # --- queries --------------------------------------------------------------------------------------------

    def find(self, item_id: Any) -> Item:
        """The item with this id.

        Raises:
            Refused: if there is none.
        """
        if isinstance(item_id, str) and item_id in self._items:
            return self._items[item_id]
        if item_id is None:
            raise Refused("item_id is missing", "missing_required_parameter", "item_id")
        raise Refused(f"no item {item_id!r:.80} in this conversation", "item_not_found", "item_id")

    def before(self, item: Item) -> str | None:
        """Id of the item before this one."""
        messages = self.session.conversation.messages
        place = next(i for i, message in enumerate(messages) if message.id == item.id)
        return messages[place - 1].id if place else None

    def turns(self) -> list[Message] | None:
        """Turns to reply to, if the conversation contains turns without content; otherwise None."""
        messages = self.session.conversation.messages
        filled = [message for message in messages if message.rows]
        return None if len(filled) == len(messages) else filled

    async def settled(self, items: Iterable[Item] | None = None) -> None:
        """Waits until all speech has its codes.

        Args:
            items: Items to wait for; None: all.

        Raises:
            UserError: if some speech could not be encoded.
        """
        waiting = [i.filling for i in (self._items.values() if items is None else items) if i.filling]
        if waiting:
            await asyncio.wait(waiting)  # unlike `gather`, it does not cancel the tasks when it is cancelled
        errors = [task.result() for task in waiting if not task.cancelled()]
        if failures := [error for error in errors if error]:
            raise UserError(failures[0])

    # --- changing -------------------------------------------------------------------------------------------

    def add_turn(self, item_id: str, codes: "Future[list[int]]") -> Item:
        """Appends the user's speech."""
        item = Item(Message("user", [], item_id), [{"type": "input_audio", "transcript": None}])
        return self._add(item, [codes], None)

    def create(self, content: Any, after: Any) -> Item:
        """Creates an item that a client sent.

        Args:
            content: Field `item` of the event.
            after: Id of the preceding item, `root`, or None for the end.

        Raises:
            Refused: if it is invalid.
        """
        if after not in (None, "root"):
            try:
                self.find(after)
            except Refused as error:
                raise Refused(str(error), error.code, "previous_item_id") from error
        item, parts = self.read(content, "item")
        return self._add(item, parts, after)

    def add_reply(self, message: Message) -> Item:
        """Appends the reply that is being generated."""
        item = Item(message, [], "in_progress")
        self._items[item.id] = item
        self.session.conversation.add(message)
        return item

    def delete(self, item_id: Any) -> None:
        """Removes an item.

        Raises:
            Refused: if there is none, or it is being generated.
        """
        item = self._at_rest(item_id)
        if item.filling is not None:
            item.filling.cancel()
        self._remove(item)

    async def truncate(self, item_id: Any, content_index: Any, audio_end_ms: Any) -> None:
        """Truncates a reply's speech; keeps the text before that point.

        Raises:
            Refused: if the item is not a spoken reply, or is shorter.
        """
        item = self._at_rest(item_id)
        if content_index not in (0, None) or not any(p["type"] == "output_audio" for p in item.content):
            raise Refused("only part 0 of an assistant's audio can be cut", param="content_index")
        if not isinstance(audio_end_ms, int) or isinstance(audio_end_ms, bool) or audio_end_ms < 0:
            raise Refused(
                f"audio_end_ms is {audio_end_ms!r:.80}, expected whole milliseconds",
                "invalid_type",
                "audio_end_ms",
            )
        await self.settled([item])
        conversation = self.session.conversation
        length_ms = MS_OF_CODE * len(item.message.codes(conversation.format))
        if audio_end_ms > length_ms:
            raise Refused(
                f"audio_end_ms is {audio_end_ms}, but the item has {length_ms} ms", param="audio_end_ms"
            )
        conversation.truncate(item.id, audio_end_ms // MS_OF_CODE)
        item.content = [{"type": "output_audio", "transcript": item.message.text}]

    # --- parsing of client data -----------------------------------------------------------------------------

    def read_input(self, values: Sequence[Any]) -> list[Item]:
        """Items of `response.input`: new ones, and references to items of the conversation.

        Raises:
            Refused: if one is invalid.
        """
        items: list[Item] = []
        for place, value in enumerate(values):
            if sum(len(item.message.text) for item in items) > MAX_PARTS * MAX_TEXT or place >= MAX_ITEMS:
                raise Refused("response.input is too long", "context_length_exceeded", "response.input")
            if value.get("type") == "item_reference":
                items.append(self.find(value.get("id")))
            else:
                item, parts = self.read(value, f"response.input.{place}")
                self._fill(item, parts)
                items.append(item)
        return items

    def read(self, value: Any, path: str) -> tuple[Item, list[Part]]:
        """An item outside of the conversation, and the parts from which its rows are made.

        Raises:
            Refused: if it is invalid.
        """
        if not isinstance(value, dict):
            raise Refused(f"{path} is missing, or not an object", "missing_required_parameter", path)
        if value.get("type") != "message":
            raise Refused(f"{path}.type is {value.get('type')!r:.80}, expected message", param=f"{path}.type")
        role: Role | None = next((r for r in ROLES if r == value.get("role")), None)
        parts = value.get("content")
        if role is None:
            raise Refused(
                f"{path}.role is {value.get('role')!r:.80}, expected {', '.join(ROLES)}", param=f"{path}.role"
            )
        if not isinstance(parts, list) or not parts:
            raise Refused(f"{path}.content has no parts", "missing_required_parameter", f"{path}.content")
        if len(parts) > MAX_PARTS:
            raise Refused(
                f"{path}.content has {len(parts)} parts, expected {MAX_PARTS} or less",
                param=f"{path}.content",
            )
        own_id = value.get("id")
        if own_id is not None and (not isinstance(own_id, str) or not 0 < len(own_id) <= 64):
            raise Refused(f"{path}.id is {own_id!r:.80}, expected 1 to 64 letters", param=f"{path}.id")
        if own_id in self._items or own_id == "root":
            raise Refused(f"an item {own_id!r} is there already", "item_exists", f"{path}.id")
        message = Message(role, []) if own_id is None else Message(role, [], own_id)
        item, sources = Item(message, []), []
        for place, part in enumerate(parts):
            shown, source = self._read_part(role, part, f"{path}.content.{place}")
            item.content.append(shown)
            sources.append(source)
        message.text = "".join(p.get("text") or p.get("transcript") or "" for p in item.content)
        return item, sources

    def _read_part(self, role: str, part: Any, path: str) -> tuple[Json, Part]:
        kind = part.get("type") if isinstance(part, dict) else None
        transcript = part.get("transcript") if isinstance(part, dict) else None
        if kind is not None and kind == _TEXT_PARTS[role]:
            text = checked_text(part.get("text"), f"{path}.text")
            return {"type": kind, "text": text}, self._rows_of(text)
        if kind is None or kind != _SOUND_PARTS.get(role):
            expected = [t[role] for t in (_TEXT_PARTS, _SOUND_PARTS) if role in t]
            raise Refused(
                f"{path}.type is {kind!r:.80}, expected {' or '.join(expected)}", param=f"{path}.type"
            )
        if transcript is not None:
            checked_text(transcript, f"{path}.transcript")
        shown = {"type": kind, "transcript": transcript}
        if part.get("audio") is None and role == "assistant" and transcript is not None:
            return shown, self._rows_of(transcript)
        return shown, self._encode(part.get("audio"), f"{path}.audio")

    def _rows_of(self, text: str) -> list[int]:
        return self.session.conversation.text_message("user", text).rows

    def _encode(self, audio: Any, path: str) -> "Future[list[int]]":
        self.check_room()
        turn = self.session.listen(rates.DECODER_RATE_HZ)
        turn.push(checked_sound(audio, path))
        return turn.finish()

    # --- internals ------------------------------------------------------------------------------------------

    def check_can_listen(self) -> None:
        """Checks that the model accepts speech.

        Raises:
            Refused: if it does not.
        """
        if self.session.engine.model.speech_tokenizer is None:
            raise Refused("this model cannot listen: send text, or start the server with --codec")

    def check_room(self) -> None:
        """Checks that the session may have another turn encoded.

        Raises:
            Refused: if it may not.
        """
        self.check_can_listen()
        if (count := len(self._waiting())) >= MAX_ENCODING:
            raise Refused(f"{count} turns wait for their codes already", "rate_limit_exceeded")

    async def room(self) -> None:
        """Waits until the session may have another turn encoded."""
        while len(waiting := self._waiting()) >= MAX_ENCODING:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    def _waiting(self) -> "list[asyncio.Task[str]]":
        """Tasks that fill in the codes of items."""
        tasks = (item.filling for item in self._items.values())
        return [task for task in tasks if task is not None and not task.done()]

    def _add(self, item: Item, parts: list[Part], after: str | None) -> Item:
        conversation, lm = self.session.conversation, self.session.engine.model.lm
        if len(self._items) >= MAX_ITEMS:
            raise Refused(f"{MAX_ITEMS} items in this conversation: delete some", "conversation_full")
        rows = sum(len(m.rows) for m in conversation.messages) + sum(
            len(p) for p in parts if isinstance(p, list)
        )
        try:
            lm.check_context(rows)
        except UserError as error:
            raise Refused(str(error), "context_length_exceeded") from error
        self._items[item.id] = item
        conversation.add(item.message, after)
        self._fill(item, parts)
        return item

    def _fill(self, item: Item, parts: list[Part]) -> None:
        if all(isinstance(part, list) for part in parts):
            item.message.rows = [row for part in parts if isinstance(part, list) for row in part]
        else:
            item.filling = asyncio.create_task(self._wait_for(item, parts))

    async def _wait_for(self, item: Item, parts: list[Part]) -> str:
        rows: list[int] = []
        try:
            for part in parts:
                if isinstance(part, Future):
                    codes = await asyncio.wrap_future(part)
                    part = self.session.conversation.speech_message(item.message.role, codes).rows
                rows += part
        except Exception as error:  # also errors of the engine's threads
            self._remove(item)
            self._on_error(
                Refused(f"item {item.id} is taken out: {error}", "invalid_audio", kind=_kind(error))
            )
            return str(error) or type(error).__name__
        item.message.rows = rows
        return ""

    def _remove(self, item: Item) -> None:
        if self._items.pop(item.id, None) is not None:
            self.session.conversation.delete(item.id)

    def _at_rest(self, item_id: Any) -> Item:
        item = self.find(item_id)
        if item.status == "in_progress":
            raise Refused(f"item {item.id} is being made: cancel its response first", "item_in_progress")
        return item


def _kind(error: Exception) -> str:
    return "invalid_request_error" if isinstance(error, UserError) else "server_error"


def checked_text(value: Any, path: str) -> str:
    """Checks a text sent by a client.

    Raises:
        Refused: if it is not a string, is too long, or is not valid Unicode.
    """
    if not isinstance(value, str):
        raise Refused(f"{path} is missing, or not a text", "missing_required_parameter", path)
    if len(value) > MAX_TEXT:
        raise Refused(f"{path} has {len(value)} characters, expected {MAX_TEXT} or less", param=path)
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise Refused(f"{path} has half a character (a surrogate)", param=path)
    return value


def checked_sound(value: Any, path: str) -> Any:
    """Decodes samples sent by a client to float32 (T,).

    Raises:
        Refused: if they are not 16-bit samples in base64, or exceed 15 MiB.
    """
    if not isinstance(value, str):
        raise Refused(f"{path} is missing, or not a text", "missing_required_parameter", path)
    try:
        return read_pcm16(value, MAX_APPEND_BYTES)
    except UserError as error:
        raise Refused(f"{path}: {error}", param=path) from error
