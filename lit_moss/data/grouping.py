"""Which utterances belong together in one document."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from lit_moss.corpora.manifest import Utterance, read_manifest
from lit_moss.corpora.sources import entry_kind
from lit_moss.corpora.text import read_texts
from lit_moss.data.interleave import join_words
from lit_moss.records import printable

_TEXT_SEC = 60.0  # of speech whose transcripts make one document of text
_UNKNOWN_SEC = 2.0  # length taken for an utterance whose manifest states none
_T = TypeVar("_T")


def document_key(utterance: Utterance) -> str:
    """What an utterance belongs to: its `document`, else its name before the last dash, else its speaker."""
    if utterance.extra.get("document") is not None:
        return str(utterance.extra["document"])
    stem = printable(utterance.audio.stem)
    head, dash, _ = stem.rpartition("-")
    return head if dash else utterance.speaker or stem


def belongs_to(utterance: Utterance) -> tuple[str, str]:
    """(folder, `document_key`); the folder is "" where the key does not come from the file's name."""
    named = utterance.extra.get("document") is not None or (
        "-" not in utterance.audio.stem and utterance.speaker
    )
    return "" if named else printable(utterance.audio.parent), document_key(utterance)


def group(
    members: Iterable[tuple[Utterance, _T, float]], document_sec: float
) -> Iterator[tuple[str, list[tuple[Utterance, _T]]]]:
    """(name, members) of each run of neighbours with the same key, of at most `document_sec` together.

    Args:
        members: An utterance, a value to keep with it, and its seconds.
        document_sec: Maximum in seconds; a single utterance may be longer.
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
    """(name, text) of each document of a text list, or of a manifest's transcripts, grouped like speech."""
    if entry_kind(path) != "speech":
        yield from read_texts(path)
        return
    transcripts = ((u, (u.text or "").strip(), u.duration_sec or _UNKNOWN_SEC) for u in read_manifest(path))
    for name, members in group((member for member in transcripts if member[1]), _TEXT_SEC):
        yield name, join_words([text for _, text in members])
