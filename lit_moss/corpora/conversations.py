"""Conversations: JSON lines of {"messages": [{"role", "content", "audio_filepath"}, …]}.

A message has text, a recording (with `offset` and `duration` if it is part of a file, and `channel` if it is
not in the first channel), or both. Paths are relative to the folder of the JSON-lines file. A line may have
an `id`, which names the conversation.
"""

from dataclasses import dataclass
from pathlib import Path

from lit_moss.corpora.manifest import Utterance, absolute_path
from lit_moss.records import Record, json_lines

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One message of a conversation, with text, a recording or both.

    Args:
        role: One of `ROLES`.
        text: Written content; None: none.
        recording: Spoken content; None: none.
    """

    role: str
    text: str | None
    recording: Utterance | None


def read_conversations(path: Path) -> list[tuple[str, list[Message]]]:
    """Reads (name, messages) of every line; the name is its `id`, or else file stem and line number.

    Raises:
        UserError: if a line is not a conversation; the message names the line and the field.
    """
    folder = path.parent.absolute()
    return [
        (record.name("id") or f"{path.stem}-{record.number}", messages_of(record, folder))
        for record in json_lines(path, "an object with messages")
    ]


def messages_of(record: Record, folder: Path, is_prompt: bool = False) -> list[Message]:
    """Reads the messages of one conversation.

    Args:
        record: Line of the conversation.
        folder: Folder that relative paths start from.
        is_prompt: The conversation is one to continue: it ends with the user's turn.

    Raises:
        UserError: if the line is not a conversation; the message names the line and the field.
    """
    messages = [_message(fields, folder) for fields in record.objects("messages")]
    if is_prompt:
        if messages[-1].role != "user":
            raise record.error("messages", "a last one of the role user, which the reply follows")
        return messages
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
