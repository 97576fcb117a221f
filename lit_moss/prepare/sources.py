"""What language data is made of: manifests, text, conversations; and what of it belongs together."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.data.manifest import Utterance

_CSV_SENTENCES = 32  # of LJ Speech's metadata in a document: some 600 words, a document and not a book
_T = TypeVar("_T")


def locate(source: str, part: str) -> Path:
    """File of a source.

    Args:
        source: A file, `embedded:everyday-en` or `embedded:everyday-en-voices`.
        part: Which part of an embedded corpus, `train` or `validation`.
    """
    from lit_moss.prepare.everyday import EVERYDAY, VOICES, everyday_corpus

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
    if path.suffix in (".txt", ".csv"):
        return "text"
    for number, entry in json_lines(path):
        for key, kind in (("messages", "messages"), ("audio_filepath", "speech"), ("text", "text")):
            if key in entry:
                return kind
        raise UserError(
            f"{path}, line {number}: keys {', '.join(entry) or 'none'}, expected audio_filepath (manifest), "
            "messages (conversations) or text"
        )
    raise UserError(f"{path} has no lines: expected one JSON object each")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the line, object) of a JSON-lines file.

    Raises:
        UserError: if a line is no JSON object; it names the line.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number}: no JSON ({error.msg})") from error
                if not isinstance(entry, dict):
                    raise UserError(f"{path}, line {number}: got {line[:60]!r}, expected a JSON object")
                yield number, entry
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: expected JSON lines, is it a sound file?") from error


# --- what belongs together ----------------------------------------------------------------------------------


def document_key(u: "Utterance") -> str:
    """What an utterance belongs to: its `document`, else its name before the last dash, else its speaker."""
    if "document" in u.extra:
        return str(u.extra["document"])
    head, dash, _ = u.audio.stem.rpartition("-")
    return head if dash else u.speaker or u.audio.stem


def group(
    members: Iterable[tuple["Utterance", _T, float]], document_sec: float
) -> Iterator[tuple[str, list[tuple["Utterance", _T]]]]:
    """Neighbours of the same key, up to `document_sec` together: (name, members).

    Args:
        members: Utterance, whatever goes with it, its seconds.
        document_sec: Most seconds; one utterance alone may be longer.
    """
    held: list[tuple[Utterance, _T]] = []
    held_sec, key = 0.0, ""
    for u, value, seconds in members:
        own = document_key(u)
        if held and (own != key or held_sec + seconds > document_sec):
            yield f"{key}:{held[0][0].id}", held
            held, held_sec = [], 0.0
        key = own
        held.append((u, value))
        held_sec += seconds
    if held:
        yield f"{key}:{held[0][0].id}", held


# --- text ---------------------------------------------------------------------------------------------------


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every document of a text source.

    .txt: an empty line ends a document. .csv: LJ Speech's metadata, a chapter's sentences in documents of 32.
    .jsonl: a `text` is a document, but a manifest's transcripts are put together as its speech would be.
    """
    from lit_moss.data.interleave import join_words
    from lit_moss.data.manifest import read_manifest

    if path.suffix == ".txt":
        for i, text in enumerate(re.split(r"\n\s*\n", read_text(path))):
            if text.strip():
                yield f"{path.stem}-{i}", text.strip()
    elif path.suffix == ".csv":
        for name, sentences in _csv_chapters(path).items():
            for i in range(0, len(sentences), _CSV_SENTENCES):
                yield f"{name}-{i}", " ".join(sentences[i : i + _CSV_SENTENCES])
    elif entry_kind(path) == "speech":
        told = [(u, (u.text or "").strip(), u.duration_sec or 2.0) for u in read_manifest(path)]
        for name, members in group((m for m in told if m[1]), 60.0):
            yield name, join_words([text for _, text in members])
    else:
        for number, entry in json_lines(path):
            if not isinstance(entry.get("text"), str):
                raise UserError(f"{path}, line {number}: no text, expected an object with a text in it")
            if entry["text"].strip():
                yield f"{path.stem}-{number}", entry["text"]


def read_text(path: Path) -> str:
    """A text file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start})") from error


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """(what it belongs to, sentence) of a text source without speech, in order."""
    if path.suffix == ".csv":
        return [(name, s) for name, sentences in _csv_chapters(path).items() for s in sentences]
    found = []
    for name, text in read_texts(path):
        found += [(name, s.strip()) for s in re.split(r"(?<=[.!?。！？])\s+|\n", text) if s.strip()]
    return found


def _csv_chapters(path: Path) -> dict[str, list[str]]:
    """LJ Speech's `id|text|normalised` -> chapter: its sentences, normalised where they are given so."""
    found: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
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
        UserError: if a line is none; it names the line.
    """
    from lit_moss.data.conversation import ROLES

    found = []
    for number, entry in json_lines(path):
        messages = entry.get("messages")
        if not _is_conversation(messages, ROLES):
            raise UserError(
                f'{path}, line {number}: expected {{"messages": [{{"role": …, "content": …}}, …]}}, roles '
                f"{', '.join(ROLES)}, a content or an audio_filepath in each, and an assistant's turn"
            )
        found.append((f"{path.stem}-{number}", messages))
    return found


def _is_conversation(messages: Any, roles: Sequence[str]) -> bool:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return False
    for m in messages:
        said = [m.get("content"), m.get("audio_filepath")]
        if m.get("role") not in roles or not any(said) or not all(isinstance(s, str | None) for s in said):
            return False
    return any(m["role"] == "assistant" for m in messages)


def spoken_messages(path: Path, messages: Sequence[dict[str, Any]]) -> list["Utterance"]:
    """Recordings of a conversation; paths are relative to the file's folder."""
    from lit_moss.data.manifest import Utterance

    folder = path.parent.absolute()
    return [
        Utterance(folder / m["audio_filepath"], float(m.get("offset") or 0.0), m.get("duration"))
        for m in messages
        if m.get("audio_filepath")
    ]
