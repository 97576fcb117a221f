"""Speaks conversations: users with many voices, the assistant with one.

    messages   system      user                assistant           user
    voice      –           zf_xiaoni (drawn)   the assistant's     zf_xiaoni
    + keys                 audio_filepath, duration, speaker, spoken

The user of a conversation has one voice, drawn by the conversation's id among those that speak its language.
The assistant has one voice per language. A message's `style` is passed on if the voice supports it.

Messages that already have audio, such as a recording of a person, keep it; with `respeak: true` they are
spoken like the others.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from lit_moss.corpora.conversations import ROLES
from lit_moss.data.interleave import document_rng
from lit_moss.errors import UserError
from lit_moss.prepare.language import text_language
from lit_moss.prepare.pronounce import pieces_of, pronounce
from lit_moss.prepare.stage import NOT_CONTENT, Item, Rejection, Result, Stage, item_id, without_sound
from lit_moss.prepare.storage import Storage
from lit_moss.prepare.synthesize import check_speeds, draw_speed
from lit_moss.prepare.voice_protocol import CannotSay, Voice
from lit_moss.prepare.voices import VoicePool, VoiceSettings

KEPT = "messages that keep their sound"
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
        respeak: Speak messages that already have audio too; their audio is replaced.
        keep_text: Keep a conversation that cannot be spoken, with no other audio than its messages had.
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
    respeak: bool = False
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
    version = 6
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

    def notes(self, counts: Mapping[str, float], examples: Mapping[str, str]) -> list[str]:
        lines = super().notes(counts, examples)
        if kept := int(counts.get(KEPT, 0)):
            lines.append(f"{KEPT}: {kept}, e.g. in {examples[KEPT]} (respeak: true speaks these too)")
        return lines

    def run(self, unit: Sequence[Item]) -> Result:
        item, result = unit[0], Result()
        messages = _messages(item, self.options.respeak)
        keeps = [m["role"] == "system" or self._has_sound(m) for m in messages]
        contents = [m["content"] for m in messages if m["role"] != "system" and m.get("content")]
        # Recordings without any text are of an unknown language.
        lang = item.get("lang") or ("" if all(keeps) and not contents else text_language(" ".join(contents)))
        if kept := sum(map(self._has_sound, messages)):
            result.counts[KEPT], result.examples[KEPT] = kept, item_id(item)
        try:
            spoken = self._spoken(item, messages, keeps, lang, result)
        except CannotSay as error:
            if not self.options.keep_text:
                return Result(rejected=[Rejection(item, error.reason, error.value, error.threshold)])
            spoken = [m if is_kept else without_sound(m) for m, is_kept in zip(messages, keeps, strict=True)]
            result = Result(counts={"conversations kept as text": 1}, examples=result.examples)
            if kept:
                result.counts[KEPT] = kept
        result.items.append(item | ({"lang": lang} if lang else {}) | {"messages": spoken})
        return result

    def _has_sound(self, message: Item) -> bool:
        """Whether a message has audio that it keeps."""
        return (
            not self.options.respeak and message["role"] != "system" and bool(message.get("audio_filepath"))
        )

    def _spoken(
        self, item: Item, messages: list[Item], keeps: Sequence[bool], lang: str, result: Result
    ) -> list[Item]:
        """The messages with their audio; those that `keeps` marks stay as they are.

        Raises:
            CannotSay: if a message cannot be spoken.
        """
        roles = {m["role"] for m, is_kept in zip(messages, keeps, strict=True) if not is_kept}
        voice_of, speed_of = self._cast(item, messages, roles, lang)
        spoken = []
        for number, (message, is_kept) in enumerate(zip(messages, keeps, strict=True)):
            role, style = message["role"], message.get("style")
            if is_kept:
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

    def _cast(
        self, item: Item, messages: list[Item], roles: Set[str], lang: str
    ) -> tuple[dict[str, Voice], dict[str, float]]:
        """Voice and speed of each role that is spoken."""
        if not roles:
            return {}, {}
        name = str(item.get("id", ""))
        if item.get("id") in (None, ""):
            name = sha256(repr([m.get("content") for m in messages]).encode()).hexdigest()[:16]
        rng = document_rng(self.options.seed, name)
        assistant = next(iter(self._assistants.speaking(lang)), None)
        user = self._users.draw(lang, rng, but=assistant)
        speed = draw_speed(self.options.min_speed, self.options.max_speed, rng)
        voices = {role: v for role, v in (("user", user), ("assistant", assistant)) if v is not None}
        if roles - voices.keys():
            raise CannotSay("no voice for the language", lang)
        return voices, {"user": speed, "assistant": 1.0}


def _messages(item: Item, respeak: bool) -> list[Item]:
    """The messages of a conversation.

    Raises:
        UserError: if it has none, or one is invalid.
    """
    messages = item.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{str(item)[:100]}: no messages, expected conversations: run prepare adapt before")
    for message in messages:
        is_message = isinstance(message, dict) and message.get("role") in ROLES
        if not is_message or not (
            isinstance(message.get("content"), str)
            or (message.get("audio_filepath") and message["role"] != "system" and not respeak)
        ):
            raise UserError(
                f"{item.get('id')}: {str(message)[:60]} is no message, expected role "
                f"({', '.join(ROLES)}) and content"
            )
    return messages
