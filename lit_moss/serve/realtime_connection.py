"""One client of the Realtime interface: its events, processed one after the other, and its time limits."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from lit_moss.errors import UserError
from lit_moss.serve.engine import Session, UserTurn
from lit_moss.serve.realtime_events import Json, Refused, error_event, event, new_id
from lit_moss.serve.realtime_input import InputBuffer, SpeechStarted
from lit_moss.serve.realtime_items import History, Item, checked_sound
from lit_moss.serve.realtime_outbox import MAX_CHARACTERS, MAX_EVENTS, Outbox
from lit_moss.serve.realtime_response import Response
from lit_moss.serve.realtime_session import ResponseSettings, SessionSettings, check_output, check_voice
from lit_moss.serve.turn_detection import Probabilities

# Raised by starlette when sending to a client that has disconnected, or whose connection was closed.
GONE = (WebSocketDisconnect, RuntimeError)
FLUSH_SEC = 5.0  # time for the last events of a connection that the server ends
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """Why the server ends a connection.

    Args:
        close_code: Close code: 1001 going away, 1008 do not retry, 1013 retry later.
        error: The last event, or None.
    """

    close_code: int
    error: Refused | None = None


_DRAINED = Ending(1001)
_TOO_SLOW = Ending(
    1008,
    Refused(f"more than {MAX_EVENTS} events or {MAX_CHARACTERS} bytes wait to be read", "client_too_slow"),
)


class Connection:
    """A connected client.

    Args:
        websocket: The accepted websocket.
        session: Session of the engine; closed at the end.
        vad: Opens the model of turn detection; may be called on any thread.
    """

    def __init__(self, websocket: WebSocket, session: Session, vad: Callable[[], Probabilities]) -> None:
        self._websocket, self._session = websocket, session
        limits = session.engine.limits
        self._ends_at = time.monotonic() + limits.session_sec
        self._active_at = time.monotonic()
        self._voices = session.engine.model.voices
        self.settings = SessionSettings(
            id=new_id("sess"),
            model=session.engine.model.name,
            expires_at=int(time.time() + limits.session_sec),
            output_modalities=["audio"] if self._voices else ["text"],
        )
        self.outbox = Outbox()
        self.history = History(session, lambda refused: self.outbox.send(error_event(refused)))
        self._input = InputBuffer(session, vad)
        self._response: Response | None = None
        self._response_task: asyncio.Task[None] | None = None
        self._response_wanted = False  # by turn detection, after the running one
        self._spoke = False
        self._draining = False
        self._changed = asyncio.Event()

    # --- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serves the client until it disconnects or the server ends the connection."""
        self._expect_reply()
        self.outbox.send(event("session.created", session=self.settings.model_dump()))
        reader = asyncio.create_task(self._read())
        sender = asyncio.create_task(self.outbox.run(self._websocket.send_text))
        clock = asyncio.create_task(self._until_its_end())
        tasks = [reader, sender, clock]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ending = next((task.result() for task in (reader, clock) if task.done()), None)
            reader.cancel()
            if ending is not None:
                await self._end(ending)
        finally:
            self.outbox.close()
            self.history.close()
            if self._response_task is not None:
                tasks.append(self._response_task)
            for task in tasks:
                task.cancel()
            self._input.clear()
            self._session.close()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, GONE):
                    _log.error("realtime session %s", self.settings.id, exc_info=result)

    def drain(self) -> None:
        """Ends the connection after the current response."""
        self._draining = True
        self._changed.set()

    async def _until_its_end(self) -> Ending:
        """Waits until the session's time is over, the client is idle, or the server is draining."""
        limits = self._session.engine.limits
        sent = 0
        while True:
            now = time.monotonic()
            if self.outbox.sent != sent:  # a client that listens is not idle
                sent, self._active_at = self.outbox.sent, now
            if self._draining and self._response is None:
                return _DRAINED
            if now >= self._ends_at:
                message = f"the session has lasted {limits.session_sec:g} s: open another one"
                return Ending(1008, Refused(message, "session_expired"))
            idle_left = self._active_at + limits.idle_sec - now
            if idle_left <= 0:
                message = f"no event from the client for {limits.idle_sec:g} s"
                return Ending(1008, Refused(message, "session_idle_timeout"))
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(idle_left, self._ends_at - now))

    async def _end(self, ending: Ending) -> None:
        if self._response is not None and self._response_task is not None:
            self._response_wanted = False
            self._response.cancel("client_cancelled")
            await asyncio.wait([self._response_task], timeout=FLUSH_SEC)
        if ending.error is not None:
            self.outbox.send(error_event(ending.error))
        await self.outbox.flushed(FLUSH_SEC)
        reason = "" if ending.error is None else ending.error.code
        with suppress(TimeoutError, *GONE):  # already closed, or not reading
            await asyncio.wait_for(self._websocket.close(ending.close_code, reason), FLUSH_SEC)

    # --- client events --------------------------------------------------------------------------------------

    async def _read(self) -> Ending | None:
        handlers: dict[str, Callable[[Json], Awaitable[None]]] = {
            "session.update": self._update_session,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.delete": self._delete_item,
            "conversation.item.truncate": self._truncate_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return None
            self._active_at = time.monotonic()
            client_event: Json = {}
            try:
                client_event = _parsed(message.get("text") or message.get("bytes") or "")
                name = client_event.get("type")
                if not isinstance(name, str) or name not in handlers:
                    expected = ", ".join(handlers)
                    raise Refused(f"type is {name!r:.80}, expected one of {expected}", param="type")
                await handlers[name](client_event)
            except Refused as error:
                self._refuse(error, client_event)
            except UserError as error:
                self._refuse(Refused(str(error)), client_event)
            except Exception:
                _log.exception("realtime session %s", self.settings.id)
                error = Refused("the server failed at this event", "server_error", kind="server_error")
                self._refuse(error, client_event)
            if self.outbox.overflows:
                return _TOO_SLOW

    def _refuse(self, error: Refused, client_event: Json) -> None:
        event_id = client_event.get("event_id")
        self.outbox.send(error_event(error, event_id[:512] if isinstance(event_id, str) else None))

    def _has_spoken(self) -> bool:
        return self._spoke or (self._response is not None and self._response.spoke)

    async def _update_session(self, update: Json) -> None:
        new = self.settings.updated(update.get("session"), voice_is_fixed=self._has_spoken())
        check_output(new.output_modalities, new.audio.output.voice, self._voices, "session")
        await self._input.set_detection(new.audio.input.turn_detection)  # the last step that can fail
        self._session.conversation.instructions = new.instructions
        self.settings = new
        self._expect_reply()
        self.outbox.send(event("session.updated", session=new.model_dump()))

    def _expect_reply(self) -> None:
        """Lets the model process a turn while it is spoken, which requires the options of the reply."""
        options = ResponseSettings.of(self.settings).reply_options(self._session.engine.limits)
        self._session.expected = options

    # --- sound ----------------------------------------------------------------------------------------------

    async def _append(self, append: Json) -> None:
        self.history.check_can_listen()
        samples_T = checked_sound(append.get("audio"), "audio")
        async for found in self._input.append(samples_T):
            vad = self.settings.audio.input.turn_detection
            if isinstance(found, SpeechStarted):
                self.outbox.send(
                    event("input_audio_buffer.speech_started", item_id=found.item_id, audio_start_ms=found.ms)
                )
                if vad and vad.interrupt_response and self._response and self._response.in_conversation:
                    self._response.cancel("turn_detected")
                continue
            self.outbox.send(
                event("input_audio_buffer.speech_stopped", item_id=found.item_id, audio_end_ms=found.ms)
            )
            try:
                await self.history.room()
                self._add_turn(found.item_id, found.turn)
            except Refused as error:  # only for this turn: the event may contain later ones
                self._refuse(error, append)
                continue
            if vad and vad.create_response:
                self._want_response()

    async def _commit(self, _: Json) -> None:
        self.history.check_room()
        try:
            item_id, turn = self._input.commit()
        except UserError as error:
            raise Refused(str(error), "input_audio_buffer_commit_empty") from error
        self._add_turn(item_id, turn)

    def _add_turn(self, item_id: str, turn: UserTurn) -> None:
        try:
            self.history.check_room()
            item = self.history.add_turn(item_id, turn.finish())
        except Refused:
            turn.clear()
            raise
        before = self.history.before(item)
        self.outbox.send(event("input_audio_buffer.committed", item_id=item_id, previous_item_id=before))
        self._show_item(item)

    async def _clear(self, _: Json) -> None:
        self._input.clear()
        self.outbox.send(event("input_audio_buffer.cleared"))

    # --- items ----------------------------------------------------------------------------------------------

    def _show_item(self, item: Item) -> None:
        before = self.history.before(item)
        for what in ("added", "done"):
            self.outbox.send(event(f"conversation.item.{what}", item=item.shown(), previous_item_id=before))

    async def _create_item(self, create: Json) -> None:
        self._show_item(self.history.create(create.get("item"), create.get("previous_item_id")))

    async def _retrieve_item(self, retrieve: Json) -> None:
        item = self.history.find(retrieve.get("item_id"))
        self.outbox.send(event("conversation.item.retrieved", item=item.shown()))

    async def _delete_item(self, delete: Json) -> None:
        await self._cancelled_response_ended()
        self.history.delete(delete.get("item_id"))
        self.outbox.send(event("conversation.item.deleted", item_id=delete["item_id"]))

    async def _truncate_item(self, cut: Json) -> None:
        await self._cancelled_response_ended()
        await self.history.truncate(cut.get("item_id"), cut.get("content_index"), cut.get("audio_end_ms"))
        fields = {name: cut.get(name, 0) for name in ("item_id", "content_index", "audio_end_ms")}
        self.outbox.send(event("conversation.item.truncated", **fields))

    # --- responses ------------------------------------------------------------------------------------------

    async def _create_response(self, create: Json) -> None:
        changes = create.get("response")
        settings = ResponseSettings.of(self.settings, changes)
        check_output(settings.output_modalities, settings.audio.output.voice, self._voices, "response")
        await self._cancelled_response_ended()
        if self._has_spoken():
            check_voice(self.settings.audio.output.voice, settings.audio.output.voice, "response")
        if self._response is not None:
            raise Refused(
                "a response is being made already: cancel it, or wait for its end",
                "conversation_already_has_active_response",
            )
        inputs = None if settings.input is None else self.history.read_input(settings.input)
        self._start_response(settings, inputs)

    async def _cancel_response(self, cancel: Json) -> None:
        response_id = cancel.get("response_id")
        if self._response is None or response_id not in (None, self._response.id):
            raise Refused("no such response is being made", "response_cancel_not_active", "response_id")
        self._response_wanted = False
        self._response.cancel("client_cancelled")

    async def _cancelled_response_ended(self) -> None:
        """Waits for a cancelled response, which ends within a row, before the next event of the client."""
        while self._response is not None and self._response.cancelled and self._response_task is not None:
            await asyncio.wait([self._response_task])

    def _want_response(self) -> None:
        """Starts a response to the last turn, now or after the current response."""
        if self._response is None:
            self._start_response(ResponseSettings.of(self.settings), None)
        else:
            self._response_wanted = True

    def _start_response(self, settings: ResponseSettings, inputs: list[Item] | None) -> None:
        self._response = Response(self._session, self.history, self.outbox, settings, inputs)
        self._response_task = asyncio.create_task(self._run_response(self._response))

    async def _run_response(self, response: Response) -> None:
        try:
            await response.run()
        finally:
            self._spoke = self._spoke or response.spoke
            self._response, self._active_at = None, time.monotonic()
            self._changed.set()
            if self._response_wanted and not self.outbox.closed and not self._draining:
                self._response_wanted = False
                self._start_response(ResponseSettings.of(self.settings), None)


def _parsed(text: str | bytes) -> Json:
    """Parses a client event.

    Raises:
        Refused: if it is not a JSON object.
    """
    try:
        value: Any = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused("the event is not JSON", "invalid_json") from error
    if not isinstance(value, dict):
        raise Refused("the event is not an object", "invalid_json")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
