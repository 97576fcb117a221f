"""Speaks conversations: users with many voices, the assistant with one.

    messages   system      user                assistant           user
    voice      –           zf_xiaoni (drawn)   the assistant's     zf_xiaoni
    + keys                 audio_filepath, duration, speaker, spoken

The user of a conversation has one voice, drawn by the conversation's id among those that speak its language.
The assistant has one voice per language. A message's `style` is passed on if the voice supports it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from lit_moss.corpora.conversations import ROLES
from lit_moss.data.interleave import document_rng
from lit_moss.errors import UserError
from lit_moss.prepare.language import text_language
from lit_moss.prepare.pronounce import pieces_of, pronounce
from lit_moss.prepare.stage import NOT_CONTENT, Item, Rejection, Result, Stage, without_sound
from lit_moss.prepare.storage import Storage
from lit_moss.prepare.synthesize import check_speeds, draw_speed
from lit_moss.prepare.voice_protocol import CannotSay, Voice
from lit_moss.prepare.voices import VoicePool, VoiceSettings

SPEECH_KEYS = ("audio_filepath", "duration", "speaker", "spoken")


@dataclass(frozen=True)
class SpeakOptions:
    """Options of `prepare speak` for conversations.

    Args:
        user_voices: Voices of users, named as in `prepare synthesize`.
        assistant_voices: Voices of the assistant; the first one that speaks the conversation's language is
            used.
        min_speed: Minimum speed of users; 1 is the voice's own speed, which the assistant always has.
        max_speed: Maximum speed of users.
        keep_text: Keep a conversation that cannot be spoken, without audio.
        max_chars: Maximum number of characters per call of a voice; null: 350 in English and 100 in Chinese.
        seed: Seed of the choice of voices and speeds.
        threads: Number of threads of an embedded voice's model, per worker.
        api_key_env: Environment variable that contains the API key of endpoints.
        timeout_sec: Timeout of an endpoint or a program, in seconds.
    """

    user_voices: list[str] = field(default_factory=lambda: ["embedded:kokoro/en", "embedded:kokoro/zh"])
    assistant_voices: list[str] = field(
        default_factory=lambda: ["embedded:hibari", "embedded:kokoro/zf_xiaoxiao"]
    )
    min_speed: float = 1.0
    max_speed: float = 1.0
    keep_text: bool = False
    max_chars: int | None = None
    seed: int = 1
    threads: int = 1
    api_key_env: str = field(default="OPENAI_API_KEY", metadata=NOT_CONTENT)
    timeout_sec: float = field(default=120.0, metadata=NOT_CONTENT)

    def __post_init__(self) -> None:
        check_speeds(self.min_speed, self.max_speed)
        if self.threads < 1 or (self.max_chars is not None and self.max_chars < 20):
            raise UserError(
                f"threads is {self.threads} and max_chars {self.max_chars}, expected 1 and 20 or more"
            )


class SpeakStage(Stage):
    """Speaks conversations, see the module docstring."""

    name = "speak"
    version = 5
    Options = SpeakOptions

    def __init__(self, options: SpeakOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self.options: SpeakOptions = options
        settings = VoiceSettings(options.threads, options.api_key_env, options.timeout_sec)
        self._users = VoicePool(options.user_voices, settings)
        self._assistants = VoicePool(options.assistant_voices, settings)

    def content(self) -> dict[str, Any]:
        voices = {"user_voices": self._users.content(), "assistant_voices": self._assistants.content()}
        return super().content() | voices

    def open(self) -> None:
        self._users.open()
        self._assistants.open()

    def run(self, unit: Sequence[Item]) -> Result:
        item, result = unit[0], Result()
        messages = _messages(item)
        contents = [m["content"] for m in messages if m["role"] != "system"]
        lang = item.get("lang") or text_language(" ".join(contents))
        try:
            spoken = self._spoken(item, messages, lang, result)
        except CannotSay as error:
            if not self.options.keep_text:
                return Result(rejected=[Rejection(item, error.reason, error.value, error.threshold)])
            spoken = list(map(without_sound, messages))
            result = Result(counts={"conversations kept as text": 1})
        result.items.append({**item, "lang": lang, "messages": spoken})
        return result

    def _spoken(self, item: Item, messages: list[Item], lang: str, result: Result) -> list[Item]:
        """The messages with their audio.

        Raises:
            CannotSay: if a message cannot be spoken.
        """
        voice_of, speed_of = self._cast(item, messages, lang)
        spoken = []
        for number, message in enumerate(messages):
            role, style = message["role"], message.get("style")
            if role == "system":
                spoken.append(message)
                continue
            voice = voice_of[role]
            try:
                pieces = pieces_of(message["content"], lang, self.options.max_chars)
                if not pieces:
                    raise CannotSay("no text")
                said = pronounce(self.storage, voice, pieces, lang, speed_of[role], style)
            except CannotSay as error:
                value = (
                    f"messages[{number}]: {error.value}" if error.value is not None else f"messages[{number}]"
                )
                raise CannotSay(error.reason, value, error.threshold) from error
            if style and style != "neutral":
                key = (
                    "messages spoken in a style"
                    if voice.takes_style
                    else "messages whose voice takes no style"
                )
                result.counts[key] = result.counts.get(key, 0) + 1
            sound = (said.path, said.duration_sec, voice.speaker, said.spoken)
            spoken.append({**without_sound(message), **dict(zip(SPEECH_KEYS, sound, strict=True))})
        return spoken

    def _cast(self, item: Item, messages: list[Item], lang: str) -> tuple[dict[str, Voice], dict[str, float]]:
        """Voice and speed of each role."""
        name = str(item.get("id", ""))
        if item.get("id") in (None, ""):
            name = sha256(repr([m["content"] for m in messages]).encode()).hexdigest()[:16]
        rng = document_rng(self.options.seed, name)
        assistant = next(iter(self._assistants.speaking(lang)), None)
        user = self._users.draw(lang, rng, but=assistant)
        if user is None or assistant is None:
            raise CannotSay("no voice for the language", lang)
        speed = draw_speed(self.options.min_speed, self.options.max_speed, rng)
        return {"user": user, "assistant": assistant}, {"user": speed, "assistant": 1.0}


def _messages(item: Item) -> list[Item]:
    """The messages of a conversation.

    Raises:
        UserError: if it has none, or one is invalid.
    """
    messages = item.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{str(item)[:100]}: no messages, expected conversations: run prepare adapt before")
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise UserError(
                f"{item.get('id')}: {str(message)[:60]} is no message, expected role "
                f"({', '.join(ROLES)}) and content"
            )
    return messages
