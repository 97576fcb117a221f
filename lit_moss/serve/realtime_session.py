"""Settings of a Realtime session and of a response: defaults, partial updates, validation.

An update is merged recursively into the settings, and the result is validated as a whole: it is applied
completely or not at all.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lit_moss.llm.replies import FORMS, FormName
from lit_moss.llm.sampling import Sampling, sampling_of
from lit_moss.serve.realtime_events import Json, Refused
from lit_moss.serve.replies import ReplyOptions
from lit_moss.serve.settings import Limits
from lit_moss.serve.turn_detection import TurnDetection

MAX_TEXT = 2**15  # characters of instructions, or of one part of an item
_SAMPLING = Sampling()


def _one_modality(value: list[str]) -> list[str]:
    if value not in (["audio"], ["text"]):
        raise ValueError('expected ["audio"] (with a transcript) or ["text"]')
    return value


def _most_tokens(value: Any) -> Any:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not is_count and value != "inf":
        raise ValueError('expected a whole number of 1 or more, or "inf"')
    return value


def _name_of_voice(value: Any) -> Any:
    return value["id"] if isinstance(value, dict) and set(value) == {"id"} else value


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Modalities = Annotated[list[str], AfterValidator(_one_modality)]
MostTokens = Annotated[Any, AfterValidator(_most_tokens)]
Voice = Annotated[str, BeforeValidator(_name_of_voice)]
Ignored = Any  # accepted and echoed, without effect


class Settings(BaseModel):
    """Base class: no unknown fields, no type conversion."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PcmFormat(Settings):
    """The only format: 16-bit samples, mono, little-endian."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class ServerVad(Settings):
    """Turn detection by silero-vad, see `lit_moss.serve.turn_detection`."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5000)
    silence_duration_ms: int = Field(default=500, ge=0, le=10_000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: None = None

    def rule(self) -> TurnDetection:
        """The options of the detector."""
        return TurnDetection(self.threshold, self.silence_duration_ms)


class AudioInput(Settings):
    """Audio from the client. Without turn detection the client commits turns and requests responses."""

    format: PcmFormat = Field(default_factory=PcmFormat)
    turn_detection: ServerVad | None = None
    noise_reduction: Ignored = None
    transcription: Ignored = None


class AudioOutput(Settings):
    """Audio to the client."""

    format: PcmFormat = Field(default_factory=PcmFormat)
    voice: Voice = "default"
    speed: float = Field(default=1.0, ge=1, le=1)


class Audio(Settings):
    """Audio input and output."""

    input: AudioInput = Field(default_factory=AudioInput)
    output: AudioOutput = Field(default_factory=AudioOutput)


class Extras(Settings):
    """Settings that OpenAI's interface lacks, under the key `lit_moss`.

    Args:
        temperature: Sampling temperature of text and speech, see `Sampling`; 0: greedy.
        top_k: Number of most likely ids to choose from, see `Sampling`; 0: all.
        top_p: Probability mass of the most likely ids to choose from, see `Sampling`.
        repetition_penalty: Repetition penalty, see `Sampling`; null: 1.1, or 1 at temperature 0.
        seed: Seed of the sampling; null: drawn for each response.
        reply_form: `direct`, `guided` or `interleaved`; null: the form that the model was trained for.
        codes: Whether to send `lit_moss.codes.delta` and `lit_moss.response.timing` with responses.
    """

    temperature: float = Field(default=_SAMPLING.temperature, ge=0, allow_inf_nan=False)
    top_k: int = Field(default=_SAMPLING.top_k, ge=0)
    top_p: float = Field(default=_SAMPLING.top_p, gt=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    reply_form: FormName | None = None
    codes: bool = False

    def sampling(self) -> Sampling:
        """The sampling options for the engine."""
        return sampling_of(self.temperature, self.top_k, self.top_p, self.repetition_penalty)


class SessionSettings(Settings):
    """A session, as shown in `session.created` and `session.updated`."""

    type: Literal["realtime"] = "realtime"
    object: str = "realtime.session"
    id: str
    model: str
    expires_at: int
    instructions: Text = ""
    output_modalities: Modalities
    max_output_tokens: MostTokens = "inf"
    audio: Audio = Field(default_factory=Audio)
    tools: list[Any] = Field(default_factory=list)
    tool_choice: Ignored = "auto"
    parallel_tool_calls: Ignored = None
    reasoning: Ignored = None
    prompt: Ignored = None
    tracing: Ignored = None
    truncation: Ignored = None
    include: Ignored = None
    lit_moss: Extras = Field(default_factory=Extras)

    def updated(self, update: Any, voice_is_fixed: bool) -> "SessionSettings":
        """The settings after a `session.update`.

        Args:
            update: Field `session` of the event.
            voice_is_fixed: Whether audio has already been sent.

        Raises:
            Refused: if the update is invalid; nothing is changed.
        """
        if not isinstance(update, dict):
            raise Refused("session.update without a session", "missing_required_parameter", "session")
        if "type" not in update:
            raise Refused(
                'session.type is missing, expected "realtime"', "missing_required_parameter", "session.type"
            )
        new = parsed(SessionSettings, merged(self.model_dump(), update), "session")
        for name in ("id", "object", "model", "expires_at"):
            if new.model_dump()[name] != self.model_dump()[name]:
                raise Refused(f"session.{name} cannot change", param=f"session.{name}")
        if voice_is_fixed:
            check_voice(self.audio.output.voice, new.audio.output.voice, "session")
        return new


class ResponseOutput(Settings):
    """Audio of a response."""

    output: AudioOutput


class ResponseSettings(Settings):
    """A response: the session's settings, overridden by those of `response.create`."""

    instructions: Text
    output_modalities: Modalities
    max_output_tokens: MostTokens
    audio: ResponseOutput
    lit_moss: Extras
    conversation: Literal["auto", "none"] = "auto"
    input: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    tools: Ignored = None
    tool_choice: Ignored = None
    parallel_tool_calls: Ignored = None
    reasoning: Ignored = None
    prompt: Ignored = None

    @classmethod
    def of(cls, session: SessionSettings, changes: Any = None) -> "ResponseSettings":
        """Settings of a response.

        Args:
            session: Settings of its session.
            changes: Field `response` of the event, or None.

        Raises:
            Refused: if they are invalid.
        """
        if changes is None:
            changes = {}
        if not isinstance(changes, dict):
            raise Refused("response is not an object", "invalid_type", "response")
        names = {"instructions", "output_modalities", "max_output_tokens", "audio", "lit_moss"}
        own = session.model_dump(include=names)
        del own["audio"]["input"]
        return parsed(cls, merged(own, changes), "response")

    @property
    def speaks(self) -> bool:
        """Whether the response is spoken."""
        return self.output_modalities == ["audio"]

    def reply_options(self, limits: Limits) -> ReplyOptions:
        """The reply options for the engine."""
        sampling = self.lit_moss.sampling()
        form = self.lit_moss.reply_form
        most = self.max_output_tokens
        return ReplyOptions(
            reply="speech" if self.speaks else "text",
            form=None if form is None else FORMS[form],
            max_new_tokens=limits.max_new_tokens if most == "inf" else min(most, limits.max_new_tokens),
            text=sampling,
            speech=sampling,
            seed=self.lit_moss.seed,
            voice=self.audio.output.voice,
        )


def check_voice(own: str, voice: str, path: str) -> None:
    """Rejects a change of the voice after the first audio.

    Args:
        own: Voice of the session.
        voice: Requested voice.
        path: Path of the setting, for the message.

    Raises:
        Refused: if the voices differ.
    """
    if voice != own:
        raise Refused(
            "the voice cannot change after the first sound: open another session",
            "cannot_update_voice",
            f"{path}.audio.output.voice",
        )


def check_output(modalities: list[str], voice: str, voices: Collection[str], path: str) -> None:
    """Checks that a model supports the requested output.

    Args:
        modalities: Value of `output_modalities`.
        voice: Name of the voice.
        voices: Names of the model's voices; empty if it cannot speak.
        path: `session` or `response`.

    Raises:
        Refused: if it does not.
    """
    if modalities == ["audio"] and not voices:
        raise Refused(
            "this model has no decoder and cannot speak: ask for text, or start the server with --codec",
            param=f"{path}.output_modalities",
        )
    if voices and voice not in voices:
        raise Refused(
            f"no voice {voice!r}, expected one of {', '.join(voices)}", param=f"{path}.audio.output.voice"
        )


def merged(settings: Json, update: Json) -> Json:
    """Merges an update into settings recursively."""
    result = dict(settings)
    for name, value in update.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


_Model = TypeVar("_Model", bound=Settings)
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


def parsed(model: type[_Model], values: Json, path: str) -> _Model:
    """Validates values.

    Raises:
        Refused: if a value is invalid; reports the first error.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        param = ".".join([path, *map(str, fault["loc"])])
        code = _CODES.get(fault["type"], "invalid_type" if "type" in fault["type"] else "invalid_value")
        message = fault["msg"].removeprefix("Value error, ")
        if code == "unknown_parameter":
            raise Refused(f"unknown parameter {param}", code, param) from error
        raise Refused(f"{param}: {message}, got {fault['input']!r:.80}", code, param) from error
