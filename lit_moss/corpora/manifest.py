"""Speech manifests: JSON lines in NeMo's convention, one utterance per line.

    {"audio_filepath": "wavs/a.flac", "offset": 0.0, "duration": 3.2, "text": "…",
     "speaker": "ljs", "lang": "en"}

`audio_filepath` is absolute or relative to the manifest's folder. `offset` and `duration` are in seconds;
without `duration`, the utterance extends to the end of its file. `channel` is the number of a channel, from
0; without it the first one is read. Unknown keys are kept and written back.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError
from lit_moss.files import atomic_write
from lit_moss.records import Record, is_number, json_lines, printable


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest.

    Args:
        audio: Audio file, absolute path.
        offset_sec: Start within the file, in seconds.
        duration_sec: Length in seconds; None: the rest of the file.
        text: Transcript as written; None: none.
        speaker: Name of the speaker; None: unknown.
        lang: ISO 639-1 code; None: unknown.
        extra: All other keys of the line.
        channel: Number of the channel, from 0; None: the first one.
    """

    audio: Path
    offset_sec: float = 0.0
    duration_sec: float | None = None
    text: str | None = None
    speaker: str | None = None
    lang: str | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)
    channel: int | None = None

    @property
    def id(self) -> str:
        """Stable name of the utterance: file stem, followed by offset and channel unless they are 0.

        For display, not a key: files in different folders may share it.
        """
        return printable(self.audio.stem) + self._part

    @property
    def key(self) -> str:
        """Unique key of the utterance: its file, offset and channel."""
        return printable(self.audio) + self._part

    @property
    def _part(self) -> str:
        offset = f"@{self.offset_sec:.3f}" if self.offset_sec else ""
        return offset + (f"#{self.channel}" if self.channel else "")


USES = ("interleave", "speech")  # values of `use`: what the transcript may be used for
_KEYS = ("audio_filepath", "offset", "duration", "text", "speaker", "lang", "channel")


def read_manifest(path: str | Path) -> list[Utterance]:
    """Reads the utterances of a manifest, in order.

    Raises:
        UserError: if the file is missing or empty, a line is not a JSON object with an `audio_filepath`, or a
            field has another type; the message names the line and the field.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no manifest {path}: expected a JSON-lines file, as `prepare manifest` writes it")
    utterances = [
        utterance_of(record, path.parent) for record in json_lines(path, "an object with an audio_filepath")
    ]
    if not utterances:
        raise UserError(f"{path} has no lines: expected one JSON object an utterance")
    return utterances


def utterance_of(record: Record, folder: Path) -> Utterance:
    """Reads the utterance of one line.

    Args:
        record: Line of the manifest.
        folder: Folder that relative paths start from.

    Raises:
        UserError: if the line is not an utterance; the message names the line and the field.
    """
    audio = record.path("audio_filepath")
    if audio is None:
        raise record.error("audio_filepath", "the path of a sound file")
    check_words(record)
    check_chunks(record)
    record.choice("use", USES)
    record.name("document")
    return Utterance(
        audio=absolute_path(folder, audio),
        offset_sec=record.seconds("offset") or 0.0,
        duration_sec=record.seconds("duration"),
        text=record.text("text"),
        speaker=record.text("speaker"),
        lang=record.text("lang"),
        channel=record.whole_number("channel"),
        extra={key: value for key, value in record.content.items() if key not in _KEYS},
    )


def check_words(record: Record) -> None:
    """Checks that `words` is a list of [word, start, end].

    Raises:
        UserError: if it is not.
    """
    words = record.content.get("words")
    if words is None:
        return
    for word in words if isinstance(words, list) else [words]:
        whole = isinstance(word, list) and len(word) == 3
        if not whole or not isinstance(word[0], str) or not all(is_number(t) and t >= 0 for t in word[1:]):
            raise record.error("words", "a list of [word, start, end] in seconds, 0 or more")


def check_chunks(record: Record) -> None:
    """Checks that `chunks` is a list of [first word, stop word, start, end, text] with an optional modality.

    Raises:
        UserError: if it is not.
    """
    chunks = record.content.get("chunks")
    if chunks is None:
        return
    for chunk in chunks if isinstance(chunks, list) else [chunks]:
        whole = isinstance(chunk, list) and 5 <= len(chunk) <= 6
        if not whole or not all(map(is_number, chunk[:4])) or not isinstance(chunk[4], str):
            raise record.error("chunks", "a list of [first word, stop word, start, end, text] in seconds")
        if len(chunk) == 6 and chunk[5] not in (None, "text", "speech"):
            raise record.error("chunks", "text or speech after the text of each chunk, or nothing")


def absolute_path(folder: Path, name: str) -> Path:
    """Returns the absolute path of a file, without `..`, since caches identify a recording by its path.

    Like the operating system, resolves `..` after the symbolic links before it, unless that file does not
    exist: paths written by `prepare` need no links.
    """
    whole = os.path.join(folder.absolute(), name)
    if ".." not in whole:
        return Path(os.path.normpath(whole))
    plain, followed = _resolved_folders(os.path.dirname(whole))
    base = os.path.basename(whole)
    if followed != plain and os.path.exists(found := os.path.join(followed, base)):
        return Path(found)
    return Path(os.path.normpath(os.path.join(plain, base)))


@lru_cache(maxsize=4096)
def _resolved_folders(folder: str) -> tuple[str, str]:
    """Resolves the `..` of a folder by name, and by following links; equal if both name the same folder."""
    plain = os.path.normpath(folder)
    followed = os.path.realpath(folder)
    return plain, plain if os.path.realpath(plain) == followed else followed


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> int:
    """Writes the utterances atomically and returns their number.

    Paths below the manifest's folder are written relative to it.
    """
    path = Path(path)
    base = path.parent.absolute()
    count = 0
    # Bytes of a file name that are not UTF-8 become JSON escapes, such as \\udce9.
    with (
        atomic_write(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for utterance in utterances:
            file.write(json.dumps(_line(utterance, base), ensure_ascii=False) + "\n")
            count += 1
    return count


def _line(u: Utterance, base: Path) -> dict[str, Any]:
    audio = u.audio.relative_to(base) if u.audio.is_relative_to(base) else u.audio
    fields = {
        "audio_filepath": str(audio),
        "offset": u.offset_sec,
        "duration": u.duration_sec,
        "text": u.text,
        "speaker": u.speaker,
        "lang": u.lang,
        "channel": u.channel,
    }
    return {key: value for key, value in fields.items() if value is not None} | u.extra


def fingerprint(manifests: Sequence[str | Path]) -> str:
    """16 hex digits of the hash of the manifests' contents, in order, which identify the data of a run."""
    digest = hashlib.sha256()
    for path in manifests:
        digest.update(Path(path).read_bytes() + b"\0")
    return digest.hexdigest()[:16]
