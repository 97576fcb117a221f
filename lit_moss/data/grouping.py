"""Groups utterances that belong together into documents."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from lit_moss.corpora.manifest import Utterance, read_manifest
from lit_moss.corpora.sources import entry_kind
from lit_moss.corpora.text import read_texts
from lit_moss.data.interleave import join_words
from lit_moss.records import printable

_TEXT_SEC = 60.0  # seconds of speech whose transcripts make one text document
_UNKNOWN_SEC = 2.0  # assumed length of an utterance whose manifest states none
_T = TypeVar("_T")


def document_key(utterance: Utterance) -> str:
    """Group of an utterance: its `document`, otherwise its file name before the last dash, otherwise its
    speaker. Channels of a file are speakers at the same time: utterances that state one have a group each."""
    channel = "" if utterance.channel is None else f"#{utterance.channel}"
    return _recording_key(utterance) + channel


def _recording_key(utterance: Utterance) -> str:
    if utterance.extra.get("document") is not None:
        return str(utterance.extra["document"])
    stem = printable(utterance.audio.stem)
    head, dash, _ = stem.rpartition("-")
    return head if dash else utterance.speaker or stem


def belongs_to(utterance: Utterance) -> tuple[str, str]:
    """(folder, `document_key`); the folder is "" if the key is not derived from the file name."""
    named = utterance.extra.get("document") is not None or (
        "-" not in utterance.audio.stem and utterance.speaker
    )
    return "" if named else printable(utterance.audio.parent), document_key(utterance)


def group(
    members: Iterable[tuple[Utterance, _T, float]], document_sec: float
) -> Iterator[tuple[str, list[tuple[Utterance, _T]]]]:
    """Yields (name, members) for each run of consecutive members with the same key, up to `document_sec` in
    total.

    Args:
        members: For each: an utterance, a value to keep with it, and its length in seconds.
        document_sec: Maximum length of a group in seconds; a single utterance may be longer.
    """
    current: list[tuple[Utterance, _T]] = []
    current_sec, current_key = 0.0, ("", "")
    for utterance, value, seconds in members:
        key = belongs_to(utterance)
        if current and (key != current_key or current_sec + seconds > document_sec):
            yield f"{current_key[1]}:{current[0][0].id}", current
            current, current_sec = [], 0.0
        current_key = key
        current.append((utterance, value))
        current_sec += seconds
    if current:
        yield f"{current_key[1]}:{current[0][0].id}", current


def text_documents(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each document of a text list, or of a manifest's transcripts grouped like speech."""
    if entry_kind(path) != "speech":
        yield from read_texts(path)
        return
    transcripts = ((u, (u.text or "").strip(), u.duration_sec or _UNKNOWN_SEC) for u in read_manifest(path))
    for name, members in group((member for member in transcripts if member[1]), _TEXT_SEC):
        yield name, join_words([text for _, text in members])
