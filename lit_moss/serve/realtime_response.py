"""One response of a Realtime session: sends a reply of the engine as server events.

response.created
  response.output_item.added ─ conversation.item.added ─ response.content_part.added
    … deltas of transcript and audio, or of text …
  …audio.done ─ …audio_transcript.done (or …text.done) ─ content_part.done
  conversation.item.done ─ response.output_item.done
response.done                                           exactly once, at the end
"""

import asyncio
import base64
import logging
from typing import Any, Literal

from torch import Tensor

from lit_moss.errors import UserError
from lit_moss.serve import realtime_events as events
from lit_moss.serve.conversation import Message
from lit_moss.serve.engine import Session
from lit_moss.serve.realtime_events import Json, event, new_id
from lit_moss.serve.realtime_items import History, Item
from lit_moss.serve.realtime_outbox import Outbox
from lit_moss.serve.realtime_session import ResponseSettings
from lit_moss.serve.replies import AudioDelta, CodesDelta, Reply, ReplyDone, TextDelta
from lit_moss.serve.settings import SessionLimit
from lit_moss.serve.sounds import pcm16

CancelReason = Literal["client_cancelled", "turn_detected"]
_STATUS = {"stop": "completed", "length": "incomplete", "cancelled": "cancelled", "failed": "failed"}
_log = logging.getLogger(__name__)


class Response:
    """A response, from `response.created` to `response.done`.

    Args:
        session: Session of the engine.
        history: Items of the session.
        outbox: Queue of events.
        settings: Settings of the response.
        inputs: Items to respond to; None: those of the conversation.
    """

    def __init__(
        self,
        session: Session,
        history: History,
        outbox: Outbox,
        settings: ResponseSettings,
        inputs: list[Item] | None = None,
    ) -> None:
        self.id, self.settings = new_id("resp"), settings
        self._session, self._history, self._outbox = session, history, outbox
        self._inputs = inputs
        self._cancelled = asyncio.Event()
        self._reason: CancelReason | None = None
        self._reply: Reply | None = None
        self._item: Item | None = None
        self._text = ""
        self.spoke = False  # whether audio was sent
        self._status = "in_progress"
        self._details: Json | None = None
        self._done: ReplyDone | None = None

    @property
    def in_conversation(self) -> bool:
        """Whether its item is part of the conversation."""
        return self.settings.conversation == "auto"

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._reason is not None

    def cancel(self, reason: CancelReason) -> None:
        """Cancels the response: no more deltas are sent, and the final events follow."""
        if self._reason is None:
            self._reason = reason
            self._cancelled.set()
            if self._reply is not None:
                self._reply.cancel()
            self._outbox.drop(self.id)

    async def run(self) -> None:
        """Runs the response to its end."""
        self._outbox.send(event("response.created", response=self._shown()))
        try:
            await self._follow()
        except (UserError, SessionLimit) as error:
            self._fail("invalid_request_error", "invalid_request", str(error))
        except Exception:
            _log.exception("response %s", self.id)
            self._fail("server_error", "server_error", "the server failed to make this response")
        finally:
            if self._reply is not None:
                self._reply.cancel()
            self._end()

    # --- the reply ------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        await self._codes_of_inputs()
        if self.cancelled:
            return
        messages = (
            self._history.turns()
            if self._inputs is None
            else [i.message for i in self._inputs if i.message.rows]
        )
        options = self.settings.reply_options(self._session.engine.limits)
        self._reply = self._session.start_reply(options, messages, self.settings.instructions)
        self._open_item()
        async for new in self._reply:
            if isinstance(new, ReplyDone):
                self._done = new
            elif not self.cancelled:
                await self._send_delta(new)

    async def _codes_of_inputs(self) -> None:
        """Waits for the codes of the user's speech, or until the response is cancelled."""
        tasks = [
            asyncio.ensure_future(self._history.settled(self._inputs)),
            asyncio.ensure_future(self._cancelled.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()

    async def _send_delta(self, new: TextDelta | AudioDelta | CodesDelta) -> None:
        if isinstance(new, TextDelta):
            kind = "output_audio_transcript" if self.settings.speaks else "output_text"
            self._text += new.text
            await self._send_part(f"{kind}.delta", delta=new.text)
        elif isinstance(new, AudioDelta):
            if self.settings.speaks:
                await self._send_part("output_audio.delta", delta=_base64(new.samples_T))
                self.spoke = self.spoke or not self.cancelled
        elif self.settings.lit_moss.codes:
            await self._send(events.codes_event(self.id, new.codes))

    async def _send_part(self, name: str, **fields: Any) -> None:
        await self._send(event(f"response.{name}", **self._place(), **fields))

    async def _send(self, delta: Json) -> None:
        await self._outbox.room()
        if not self.cancelled:  # while it waited for room
            self._outbox.send(delta, self.id)

    # --- its item -------------------------------------------------------------------------------------------

    def _place(self) -> Json:
        assert self._item is not None
        return {"response_id": self.id, "item_id": self._item.id, "output_index": 0, "content_index": 0}

    def _part(self) -> Json:
        return (
            {"type": "audio", "transcript": self._text}
            if self.settings.speaks
            else {"type": "text", "text": self._text}
        )

    def _open_item(self) -> None:
        message = Message("assistant", [])
        if self.in_conversation:
            self._item = self._history.add_reply(message)
        else:
            self._item = Item(message, [], "in_progress")
        shown = self._item.shown()
        self._outbox.send(
            event("response.output_item.added", response_id=self.id, output_index=0, item=shown)
        )
        self._tell_conversation("added", shown)
        self._outbox.send(event("response.content_part.added", **self._place(), part=self._part()))

    def _tell_conversation(self, what: Literal["added", "done"], shown: Json) -> None:
        if self.in_conversation and self._item is not None:
            before = self._history.before(self._item)
            self._outbox.send(event(f"conversation.item.{what}", item=shown, previous_item_id=before))

    def _keep_rows(self, item: Item) -> None:
        """Stores the generated rows as the item's turn, also for a cancelled reply."""
        if self._done is not None:
            made = self._session.conversation.reply_message(self._done.rows, self._done.prompt)
            item.message.rows, item.message.text = made.rows, made.text
            if not self.cancelled and made.text.startswith(self._text) and made.text != self._text:
                kind = "output_audio_transcript" if self.settings.speaks else "output_text"
                rest = made.text[len(self._text) :]
                self._outbox.send(event(f"response.{kind}.delta", **self._place(), delta=rest), self.id)
            self._text = made.text
        kind = {"type": "output_audio"} if self.settings.speaks else {"type": "output_text"}
        item.content = [self._part() | kind]

    # --- its end --------------------------------------------------------------------------------------------

    def _fail(self, kind: str, code: str, message: str) -> None:
        self._status = "failed"
        self._details = {"type": "failed", "error": {"type": kind, "code": code, "message": message}}

    def _end(self) -> None:
        """Sends all final events."""
        self._set_status()
        try:
            if self._item is not None:
                self._close_item(self._item)
        except Exception:  # a client waits for `response.done` in any case
            _log.exception("end of response %s", self.id)
            self._fail("server_error", "server_error", "the server failed to end this response")
        if self._done is not None and self.settings.lit_moss.codes:
            self._outbox.send(events.timing_event(self.id, self._done.usage))
        self._outbox.send(event("response.done", response=self._shown()))

    def _set_status(self) -> None:
        if self._status == "failed":
            return
        reason = self._done.reason if self._done is not None else "cancelled"
        self._status = _STATUS["cancelled" if self.cancelled else reason]
        if self._status == "cancelled":
            self._details = {"type": "cancelled", "reason": self._reason or "client_cancelled"}
        elif self._status == "incomplete":
            self._details = {"type": "incomplete", "reason": "max_output_tokens"}
        elif self._status == "failed" and self._done is not None:
            self._fail("server_error", "server_error", self._done.error)

    def _close_item(self, item: Item) -> None:
        self._keep_rows(item)
        item.status = "completed" if self._status == "completed" else "incomplete"
        place, send = self._place(), self._outbox.send
        if self.settings.speaks:
            send(event("response.output_audio.done", **place))
            send(event("response.output_audio_transcript.done", **place, transcript=self._text))
        else:
            send(event("response.output_text.done", **place, text=self._text))
        send(event("response.content_part.done", **place, part=self._part()))
        shown = item.shown()
        self._tell_conversation("done", shown)
        send(event("response.output_item.done", response_id=self.id, output_index=0, item=shown))

    def _shown(self) -> Json:
        usage = None if self._done is None else events.usage_of(self._done.usage)
        settings = self.settings
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": self._status,
            "status_details": self._details,
            "output": [] if self._item is None else [self._item.shown()],
            "conversation_id": self._history.conversation_id if self.in_conversation else None,
            "output_modalities": settings.output_modalities,
            "max_output_tokens": settings.max_output_tokens,
            "audio": settings.audio.model_dump(),
            "metadata": settings.metadata,
            "usage": usage,
        }


def _base64(samples_T: Tensor) -> str:
    return base64.b64encode(pcm16(samples_T)).decode("ascii")
