"""Conversations: JSON lines of {"messages": [{"role", "content", "audio_filepath"}, …]}.

A message has a text (`content`), a recording (with `offset` and `duration`, if it is a part
of its file, and `channel`, if it is not in the first one), or
both. Paths are relative to the file's folder. A line may have an `id`, its name.
"""

from dataclasses import dataclass
from pathlib import Path

from lit_moss.corpora.manifest import Utterance, absolute_path
from lit_moss.records import Record, json_lines

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One message of a conversation; it has a text, a recording, or both.

    Args:
        role: One of `ROLES`.
        text: What it says in writing.
        recording: The same as speech.
    """

    role: str
    text: str | None
    recording: Utterance | None


def read_conversations(path: Path) -> list[tuple[str, list[Message]]]:
    """(name, messages) of every line; the name is its `id`, else the file's and the line's number.

    Raises:
        UserError: if a line is no conversation; the message names line and field.
    """
    folder = path.parent.absolute()
    return [
        (record.name("id") or f"{path.stem}-{record.number}", messages_of(record, folder))
        for record in json_lines(path, "an object with messages")
    ]


def messages_of(record: Record, folder: Path) -> list[Message]:
    """Messages of one conversation.

    Args:
        record: Its line.
        folder: What relative paths are relative to.

    Raises:
        UserError: if it is none; the message names line and field.
    """
    messages = [_message(fields, folder) for fields in record.objects("messages")]
    if not any(message.role == "assistant" for message in messages):
        raise record.error("messages", "at least one of the role assistant")
    return messages


def _message(fields: Record, folder: Path) -> Message:
    role = fields.choice("role", ROLES)
    if role is None:
        raise fields.error("role", f"one of {', '.join(ROLES)}")
    text, audio = fields.text("content"), fields.path("audio_filepath")
    offset_sec, duration_sec = fields.seconds("offset"), fields.seconds("duration")
    if not text and not audio:
        raise fields.error("content", "a text, or an audio_filepath beside it")
    recording = None
    if audio:
        channel = fields.whole_number("channel")
        recording = Utterance(
            absolute_path(folder, audio), float(offset_sec or 0.0), duration_sec, channel=channel
        )
    return Message(role, text, recording)
