"""Validates chat completion requests; see https://platform.openai.com/docs/api-reference/chat/create.

Unknown fields are rejected, so that a misspelt field is not ignored silently. Fields of OpenAI that cannot
affect a reply of this model are ignored (`IGNORED`); those that could are rejected, unless their value has no
effect.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lit_moss.llm.replies import FormName
from lit_moss.serve.api_errors import ApiError, bad_request

SoundFormat = Literal["wav", "pcm16", "flac", "mp3", "opus"]
UploadFormat = Literal["wav", "mp3", "flac", "ogg", "opus"]
IGNORED = frozenset({
    "function_call", "functions", "metadata", "moderation", "parallel_tool_calls", "prediction",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning_effort",
    "safety_identifier", "service_tier", "store", "tool_choice", "tools", "user", "verbosity",
    "web_search_options",
})  # fmt: skip


class _Part(BaseModel):
    """Fields with strict JSON types: no numbers in quotes, no NaN."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class TextPart(_Part):
    """A text part."""

    type: Literal["text"]
    text: str


class RefusalPart(_Part):
    """Text with which an assistant declined to answer."""

    type: Literal["refusal"]
    refusal: str


class InputAudio(_Part):
    """A sound file in base64."""

    data: str
    format: UploadFormat


class AudioPart(_Part):
    """Speech of the user."""

    type: Literal["input_audio"]
    input_audio: InputAudio


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _parts(*kinds: Any) -> Any:
    part: Any = kinds[0]
    for kind in kinds[1:]:
        part = part | kind
    if len(kinds) > 1:
        part = Annotated[part, Field(discriminator="type")]
    return Annotated[list[part], BeforeValidator(_as_parts), Field(min_length=1)]


class SystemMessage(_Part):
    """Instructions; `developer` is OpenAI's newer name for the role."""

    role: Literal["system", "developer"]
    content: _parts(TextPart)  # pyright: ignore[reportInvalidTypeForm]


class UserMessage(_Part):
    """A user turn: text, speech, or parts of both."""

    role: Literal["user"]
    content: _parts(TextPart, AudioPart)  # pyright: ignore[reportInvalidTypeForm]


class EarlierAudio(_Part):
    """Reference to an earlier spoken reply of this server."""

    id: str


class AssistantMessage(_Part):
    """An assistant turn: text, or a spoken reply by its id."""

    role: Literal["assistant"]
    content: _parts(TextPart, RefusalPart) | None = None  # pyright: ignore[reportInvalidTypeForm]
    audio: EarlierAudio | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class VoiceId(_Part):
    """A voice by its id; ids are the names given with `--voice`."""

    id: str


class AudioOptions(_Part):
    """Voice and audio format of a spoken reply."""

    voice: str | VoiceId
    format: SoundFormat

    @property
    def voice_name(self) -> str:
        """Name of the voice."""
        return self.voice if isinstance(self.voice, str) else self.voice.id


class StreamOptions(_Part):
    """Options of streaming."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions.

    `top_k`, `repetition_penalty` and `reply_form` are specific to this server; the `openai` client sends them
    with `extra_body`.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1)] | None = None
    audio: AudioOptions | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    reply_form: FormName | None = None
    # Rejected unless they have no effect.
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None

    @property
    def who(self) -> str:
        """Name of the requester, if given: requests with other names cannot use its caches."""
        extra = self.model_extra or {}
        names = ("prompt_cache_key", "safety_identifier", "user")
        return next((name for key in names if isinstance(name := extra.get(key), str)), "")

    @property
    def speaks(self) -> bool:
        """Whether the reply is to be spoken."""
        return "audio" in (self.modalities or [])

    @property
    def stops(self) -> list[str]:
        """Texts at which the reply ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


def parse_request(body: bytes) -> ChatRequest:
    """Parses and validates a request.

    Raises:
        ApiError: if a field is invalid; the message names the first one.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _as_api_error(error, body) from None
    unknown = sorted(set(request.model_extra or ()) - IGNORED)
    if unknown:
        raise bad_request(f"unknown field {unknown[0]!r}", unknown[0][:100], "unknown_parameter")
    _refuse_unsupported(request)
    _check_together(request)
    return request


def _refuse_unsupported(request: ChatRequest) -> None:
    penalty = "repetition_penalty instead"
    response_type = (request.response_format or {}).get("type", "text")
    # name: value given, whether it has no effect, what is expected
    fields: dict[str, tuple[Any, bool, str]] = {
        "n": (request.n, request.n in (None, 1), "1"),
        "frequency_penalty": (request.frequency_penalty, not request.frequency_penalty, penalty),
        "presence_penalty": (request.presence_penalty, not request.presence_penalty, penalty),
        "logit_bias": (request.logit_bias, not request.logit_bias, "none"),
        "logprobs": (request.logprobs, not request.logprobs, "false"),
        "top_logprobs": (request.top_logprobs, not request.top_logprobs, "0"),
        "response_format": (response_type, response_type == "text", "'text'"),
    }
    for name, (given, changes_nothing, expected) in fields.items():
        if not changes_nothing:
            message = f"{name} is {_shortened(repr(given), 60)}, which is not supported: expected {expected}"
            raise bad_request(message, name, "unsupported_parameter")


def _check_together(request: ChatRequest) -> None:
    if request.speaks and request.audio is None:
        raise bad_request("modalities with audio: expected `audio` with voice and format", "audio")
    if request.speaks and request.stream and request.audio and request.audio.format != "pcm16":
        raise bad_request(
            f"audio.format is {request.audio.format!r}: with stream, expected 'pcm16'", "audio.format"
        )
    if request.reply_form is not None and not request.speaks:
        raise bad_request("reply_form: expected modalities with audio", "reply_form")
    if request.stop is not None and request.speaks:
        raise bad_request("stop: spoken replies have no stop texts, leave it out", "stop")
    if len(request.stops) > 4 or not all(0 < len(text) <= 200 for text in request.stops):
        raise bad_request("stop: expected up to 4 texts of 1 to 200 characters", "stop")
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options: expected stream: true", "stream_options")
    for place, message in enumerate(request.messages):
        if isinstance(message, AssistantMessage) and message.audio is None and not message.content:
            raise bad_request("an assistant's turn without content and audio", f"messages[{place}].content")


def _as_api_error(error: ValidationError, body: bytes) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=True)[0]
    if first["type"] == "json_invalid":
        return bad_request(f"the body is no JSON: {_shortened(first['msg'])}", code="invalid_json")
    param = _path(first["loc"], json.loads(body), first["type"] == "missing")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    got = "" if first["type"] == "missing" else f", got {_shortened(repr(first['input']), 60)}"
    return bad_request(f"{param or 'the body'}: {_shortened(first['msg'])}{got}", param or None, code)


def _path(location: tuple[int | str, ...], content: Any, missing: bool) -> str:
    """The path `messages[0].content[1].text`: pydantic's location without the names of the types it tried."""
    path = ""
    for place, key in enumerate(location):
        if isinstance(key, int) and isinstance(content, list) and key < len(content):
            path, content = f"{path}[{key}]", content[key]
        elif isinstance(content, dict) and key in content:
            path, content = f"{path}.{key}", content[key]
        elif missing and place == len(location) - 1:
            path = f"{path}.{key}"
    return path.removeprefix(".")


def _shortened(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
