"""What language data is made of: manifests, text, conversations; and what of it belongs together."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lit_moss.errors import UserError
from lit_moss.records import Record, json_lines, printable, read_text, text_lines

if TYPE_CHECKING:
    from lit_moss.corpora.manifest import Utterance

_CSV_SENTENCES = 32  # of LJ Speech's metadata in a document: some 600 words, a document and not a book
_T = TypeVar("_T")


def locate(source: str, part: str) -> Path:
    """File of a source.

    Args:
        source: A file, `embedded:everyday-en` or `embedded:everyday-en-voices`.
        part: Which part of an embedded corpus, `train` or `validation`.
    """
    from lit_moss.corpora.everyday import EVERYDAY, VOICES, everyday_corpus

    if source in (EVERYDAY, VOICES):
        return everyday_corpus(name=source) / f"{part}.jsonl"
    path = Path(source)
    if not path.is_file():
        raise UserError(f"no source {source}: expected a manifest, a text file, {EVERYDAY} or {VOICES}")
    return path


def entry_kind(path: Path) -> str:
    """What a source holds: `text` in .txt and .csv, else by the first line `speech`, `messages` or `text`.

    Raises:
        UserError: if the first line is none of them.
    """
    if path.suffix.lower() in (".txt", ".csv"):
        return "text"
    expected = "audio_filepath (manifest), messages (conversations) or text"
    for record in json_lines(path, f"an object with {expected}"):
        for key, kind in (("messages", "messages"), ("audio_filepath", "speech"), ("text", "text")):
            if key in record.content:
                return kind
        raise UserError(
            f"{record.where}: keys {', '.join(map(printable, record.content)) or 'none'}, expected {expected}"
        )
    raise UserError(f"{path} has no lines: expected one JSON object each")


# --- what belongs together ----------------------------------------------------------------------------------


def document_key(u: "Utterance") -> str:
    """What an utterance belongs to: its `document`, else its name before the last dash, else its speaker."""
    if u.extra.get("document") is not None:
        return str(u.extra["document"])
    stem = printable(u.audio.stem)
    head, dash, _ = stem.rpartition("-")
    return head if dash else u.speaker or stem


def belongs_to(u: "Utterance") -> tuple[str, str]:
    """(folder, `document_key`); the folder is "" where the key is not taken from the file's name."""
    named = u.extra.get("document") is not None or ("-" not in u.audio.stem and u.speaker)
    return "" if named else printable(u.audio.parent), document_key(u)


def group(
    members: Iterable[tuple["Utterance", _T, float]], document_sec: float
) -> Iterator[tuple[str, list[tuple["Utterance", _T]]]]:
    """Neighbours of the same key, up to `document_sec` together: (name, members).

    Args:
        members: Utterance, whatever goes with it, its seconds.
        document_sec: Most seconds; one utterance alone may be longer.
    """
    held: list[tuple[Utterance, _T]] = []
    held_sec, key = 0.0, ("", "")
    for u, value, seconds in members:
        own = belongs_to(u)
        if held and (own != key or held_sec + seconds > document_sec):
            yield f"{key[1]}:{held[0][0].id}", held
            held, held_sec = [], 0.0
        key = own
        held.append((u, value))
        held_sec += seconds
    if held:
        yield f"{key[1]}:{held[0][0].id}", held


# --- text ---------------------------------------------------------------------------------------------------


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every document of a text source.

    .txt: an empty line ends a document. .csv: LJ Speech's metadata, a chapter's sentences in documents of 32.
    .jsonl: a `text` is a document, but a manifest's transcripts are put together as its speech would be.
    """
    from lit_moss.corpora.manifest import read_manifest
    from lit_moss.data.interleave import join_words

    if path.suffix.lower() == ".txt":
        for i, text in enumerate(re.split(r"\n\s*\n", read_text(path, "a text file"))):
            if text.strip():
                yield f"{path.stem}-{i}", text.strip()
    elif path.suffix.lower() == ".csv":
        for name, sentences in _csv_chapters(path).items():
            for i in range(0, len(sentences), _CSV_SENTENCES):
                yield f"{name}-{i}", " ".join(sentences[i : i + _CSV_SENTENCES])
    elif entry_kind(path) == "speech":
        told = [(u, (u.text or "").strip(), u.duration_sec or 2.0) for u in read_manifest(path)]
        for name, members in group((m for m in told if m[1]), 60.0):
            yield name, join_words([text for _, text in members])
    else:
        for record in json_lines(path, "an object with a text"):
            text = record.text("text")
            if text is None:
                raise record.error("text", "a string")
            if text.strip():
                yield f"{path.stem}-{record.number}", text


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """(what it belongs to, sentence) of a text source without speech, in order."""
    if path.suffix.lower() == ".csv":
        return [(name, s) for name, sentences in _csv_chapters(path).items() for s in sentences]
    found = []
    for name, text in read_texts(path):
        found += [(name, s.strip()) for s in re.split(r"(?<=[.!?。！？])\s+|\n", text) if s.strip()]
    return found


def _csv_chapters(path: Path) -> dict[str, list[str]]:
    """LJ Speech's `id|text|normalised` -> chapter: its sentences, normalised where they are given so."""
    found: dict[str, list[str]] = {}
    for number, line in text_lines(path, "LJ Speech's metadata: id|text|normalised"):
        name, *texts = (part.strip() for part in line.split("|"))
        if not name and not texts:
            continue
        spoken = [text for text in texts if text]
        if not texts:
            raise UserError(f"{path}, line {number}: got {line[:60]!r}, expected id|text|normalised")
        if spoken:
            found.setdefault(name.rpartition("-")[0] or name, []).append(spoken[-1])
    return found


# --- conversations ------------------------------------------------------------------------------------------


def read_conversations(path: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """(name, messages) of every line: {"messages": [{"role", "content", "audio_filepath"}, …]}.

    A message has a text (`content`), a recording (with `offset` and `duration`, if need be), or both.

    Raises:
        UserError: if a line is not one; it names line and field.
    """
    return [
        (f"{path.stem}-{record.number}", _messages(record))
        for record in json_lines(path, "an object with messages")
    ]


def _messages(record: Record) -> list[dict[str, Any]]:
    from lit_moss.data.conversation import ROLES

    messages = record.objects("messages")
    for message in messages:
        if message.choice("role", ROLES) is None:
            raise message.error("role", f"one of {', '.join(ROLES)}")
        content, audio = message.text("content"), message.path("audio_filepath")
        for key in ("offset", "duration"):
            message.seconds(key)
        if not content and not audio:
            raise message.error("content", "a text, or an audio_filepath beside it")
    if not any(message.content["role"] == "assistant" for message in messages):
        raise record.error("messages", "at least one of the role assistant")
    return [message.content for message in messages]


def spoken_messages(path: Path, messages: Sequence[dict[str, Any]]) -> list["Utterance"]:
    """Recordings of a conversation; paths are relative to the file's folder."""
    from lit_moss.corpora.manifest import Utterance

    folder = path.parent.absolute()
    return [
        Utterance(folder / m["audio_filepath"], float(m.get("offset") or 0.0), m.get("duration"))
        for m in messages
        if m.get("audio_filepath")
    ]
