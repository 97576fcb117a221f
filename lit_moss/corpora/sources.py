"""Data sources a user may name: a manifest, a text file, conversations, or an embedded corpus."""

from pathlib import Path
from typing import Literal

from lit_moss.corpora.everyday import EVERYDAY, VOICES, everyday_corpus
from lit_moss.errors import UserError
from lit_moss.records import json_lines, printable

Entries = Literal["speech", "messages", "text"]
_KIND_OF_KEY: dict[str, Entries] = {"messages": "messages", "audio_filepath": "speech", "text": "text"}


def locate(source: str, part: str) -> Path:
    """Returns the file of a source.

    Args:
        source: A file, `embedded:everyday-en` or `embedded:everyday-en-voices`.
        part: Part of an embedded corpus, `train` or `validation`.

    Raises:
        UserError: if there is no such file.
    """
    if source in (EVERYDAY, VOICES):
        return everyday_corpus(name=source) / f"{part}.jsonl"
    path = Path(source)
    if not path.is_file():
        raise UserError(f"no source {source}: expected a manifest, a text file, {EVERYDAY} or {VOICES}")
    return path


def entry_kind(path: Path) -> Entries:
    """Returns the kind of a source's entries: `text` for .txt and .csv, else by the keys of its first line.

    Raises:
        UserError: if the keys match no kind, or the file is empty.
    """
    if path.suffix.lower() in (".txt", ".csv"):
        return "text"
    expected = "audio_filepath (manifest), messages (conversations) or text"
    for record in json_lines(path, f"an object with {expected}"):
        for key, kind in _KIND_OF_KEY.items():
            if key in record.content:
                return kind
        raise UserError(
            f"{record.where}: keys {', '.join(map(printable, record.content)) or 'none'}, expected {expected}"
        )
    raise UserError(f"{path} has no lines: expected one JSON object each")
