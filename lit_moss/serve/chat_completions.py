"""OpenAI's chat completions with audio: POST /v1/chat/completions, GET /v1/models.

    content of the user    text parts, `input_audio` parts          what the model receives
    modalities             ["text"], ["text", "audio"]              how it replies: four combinations

Shapes and rules: https://platform.openai.com/docs/api-reference/chat
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import torch
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from lit_moss.errors import UserError
from lit_moss.llm.replies import FORMS
from lit_moss.llm.sampling import sampling_of
from lit_moss.serve.api_errors import ApiError, all_sessions_taken, bad_request, server_failure
from lit_moss.serve.chat_answer import DONE, Answer, error_chunk, usage_of
from lit_moss.serve.chat_conversation import KEPT_SEC, TOO_LONG, ChatConversations
from lit_moss.serve.chat_request import ChatRequest, parse_request
from lit_moss.serve.context import Context
from lit_moss.serve.engine import Session
from lit_moss.serve.http_streams import ClientLeft, EventStream, unless_client_leaves
from lit_moss.serve.replies import AudioDelta, Reply, ReplyDone, ReplyOptions, TextDelta
from lit_moss.serve.settings import SessionLimit
from lit_moss.serve.sounds import Base64Chunks, pcm16, sound_bytes
from lit_moss.serve.stop_texts import StopTexts

if TYPE_CHECKING:
    from fastapi import FastAPI

LEFT = 499  # status for a response that nobody reads; logs know the number from nginx


class ChatCompletions:
    """The chat completions interface.

    Args:
        context: Engine and limits of the server.
    """

    def __init__(self, context: Context) -> None:
        self._context, self._engine = context, context.engine
        self._conversations = ChatConversations(context.engine)

    async def complete(self, request: Request) -> Response:
        """Answers a request, with a complete response or a stream."""
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=LEFT)
        asked = await asyncio.to_thread(parse_request, body)
        self._check_model(asked.model)
        options = self._options(asked)
        scope = f"{request.client.host if request.client else ''} {asked.who}"
        try:
            session = self._engine.open_session(scope=scope)
        except SessionLimit as error:
            raise all_sessions_taken(str(error)) from None
        stream = None
        try:
            reply = await unless_client_leaves(request, self._start(session, asked, options))
            answer = Answer(self._engine.model.name, KEPT_SEC)
            if asked.stream:
                limits = self._engine.limits
                chunks = self._chunks(asked, answer, session, reply)
                stream = EventStream(chunks, session.close, limits.idle_sec, limits.session_sec)
                return stream
            return JSONResponse(
                await unless_client_leaves(request, self._whole(asked, answer, session, reply))
            )
        except ClientLeft:
            return Response(status_code=LEFT)
        finally:
            if stream is None:
                session.close()

    def _check_model(self, name: str) -> None:
        own = self._engine.model.name
        if name != own:
            raise ApiError(404, f"no model {name!r} here: expected {own!r}", param="model",
                           code="model_not_found")  # fmt: skip

    def _options(self, asked: ChatRequest) -> ReplyOptions:
        model = self._engine.model
        sampling = sampling_of(asked.temperature, asked.top_k, asked.top_p, asked.repetition_penalty)
        most = asked.max_completion_tokens or asked.max_tokens or ReplyOptions.max_new_tokens
        if not asked.speaks or asked.audio is None:
            return ReplyOptions("text", None, most, sampling, sampling, asked.seed)
        voice = asked.audio.voice_name
        if model.codec is None:
            raise bad_request(f"{model.name} has no decoder and cannot speak: ask for text", "modalities")
        if voice not in model.voices:
            expected = ", ".join(map(repr, model.voices))
            raise bad_request(f"no voice {voice!r}: expected one of {expected}", "audio.voice")
        form = model.record.form
        if asked.reply_form not in (None, form.name):
            form = FORMS[asked.reply_form]
        return ReplyOptions("speech", form, most, sampling, sampling, asked.seed, voice)

    async def _start(self, session: Session, asked: ChatRequest, options: ReplyOptions) -> Reply:
        turns = await self._conversations.turns(session, asked)
        try:
            return session.start_reply(options, turns)
        except SessionLimit as error:  # the engine is closing
            raise all_sessions_taken(str(error)) from None
        except UserError as error:
            raise bad_request(str(error), "messages", TOO_LONG) from None

    # --- the answer -----------------------------------------------------------------------------------------

    async def _whole(
        self, asked: ChatRequest, answer: Answer, session: Session, reply: Reply
    ) -> dict[str, Any]:
        text, waves, stop = "", [torch.zeros(0)], StopTexts(asked.stops)
        async for event in reply:
            if isinstance(event, TextDelta):
                text += stop.push(event.text)
                if stop.found:
                    reply.cancel()
            elif isinstance(event, AudioDelta):
                waves.append(event.samples_T)
            elif isinstance(event, ReplyDone):
                finish = _finish_reason(event, stop)
                self._keep(asked, answer, session, event)
                sound = None
                if asked.speaks and asked.audio is not None:
                    sound = await asyncio.to_thread(sound_bytes, torch.cat(waves), asked.audio.format)
                usage = usage_of(event, session.conversation.format)
                return answer.whole(text + stop.flush(), sound, finish, usage)
        raise server_failure("the reply has no end")

    async def _chunks(
        self, asked: ChatRequest, answer: Answer, session: Session, reply: Reply
    ) -> AsyncGenerator[bytes]:
        """Yields the events of a stream; id and expiry time only once, as clients concatenate deltas."""
        data, stop = Base64Chunks(), StopTexts(asked.stops)
        if asked.speaks:
            audio = {"id": answer.audio_id, "transcript": ""}
            yield answer.chunk({"role": "assistant", "content": None, "audio": audio})
        else:
            yield answer.chunk({"role": "assistant", "content": ""})
        async for event in reply:
            if isinstance(event, TextDelta):
                text = stop.push(event.text)
                if stop.found:
                    reply.cancel()
                if text:
                    yield answer.chunk(_text_delta(asked, text))
            elif isinstance(event, AudioDelta):
                if piece := data.push(pcm16(event.samples_T)):
                    yield answer.chunk({"audio": {"data": piece}})
            elif isinstance(event, ReplyDone):
                for chunk in self._last_chunks(asked, answer, session, event, data, stop):
                    yield chunk

    def _last_chunks(
        self, asked: ChatRequest, answer: Answer, session: Session, done: ReplyDone, data: Base64Chunks,
        stop: StopTexts,
    ) -> list[bytes]:  # fmt: skip
        try:
            finish = _finish_reason(done, stop)
        except ApiError as error:
            return [error_chunk(error.body)]
        self._keep(asked, answer, session, done)
        chunks = []
        if text := stop.flush():
            chunks.append(answer.chunk(_text_delta(asked, text)))
        if asked.speaks:
            if piece := data.flush():
                chunks.append(answer.chunk({"audio": {"data": piece}}))
            chunks.append(answer.chunk({"audio": {"expires_at": answer.expires_at}}))
        chunks.append(answer.chunk({}, finish))
        if asked.includes_usage:
            chunks.append(answer.usage_chunk(usage_of(done, session.conversation.format)))
        return [*chunks, DONE]

    def _keep(self, asked: ChatRequest, answer: Answer, session: Session, done: ReplyDone) -> None:
        message = session.conversation.reply_message(done.rows, done.prompt)
        self._conversations.keep(session, message, answer.audio_id if asked.speaks else None)

    # --- models ---------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """Lists all models: there is one."""
        return JSONResponse({"object": "list", "data": [self._model_object()]})

    async def one_model(self, request: Request) -> Response:
        """Returns the model with a given name."""
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_object())

    def _model_object(self) -> dict[str, Any]:
        name, created = self._engine.model.name, self._context.created
        return {"id": name, "object": "model", "created": created, "owned_by": "lit_moss"}


def _text_delta(asked: ChatRequest, text: str) -> dict[str, Any]:
    return {"audio": {"transcript": text}} if asked.speaks else {"content": text}


def _finish_reason(done: ReplyDone, stop: StopTexts) -> str:
    """Why a reply ended.

    Raises:
        ApiError: if the reply failed, or the server cut it off.
    """
    if done.reason == "stop" or stop.found:
        return "stop"
    if done.reason == "length":
        return "length"
    raise server_failure(
        done.error or "the reply was cut off: it took too long, or the server is shutting down"
    )


def add_chat_completions(app: "FastAPI", context: Context) -> None:
    """Adds the routes to an application."""
    interface = ChatCompletions(context)
    app.add_route("/v1/chat/completions", interface.complete, methods=["POST"])
    app.add_route("/v1/models", interface.models, methods=["GET"])
    app.add_route("/v1/models/{name:path}", interface.one_model, methods=["GET"])
