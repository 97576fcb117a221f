"""Speech manifests: JSON lines in NeMo's convention, one utterance a line.

    {"audio_filepath": "wavs/a.flac", "offset": 0.0, "duration": 3.2, "text": "…",
     "speaker": "ljs", "lang": "en"}

`audio_filepath` is absolute or relative to the manifest's folder. `offset` and `duration` are seconds;
without a `duration` the utterance ends with its file. `channel` is the number of a channel, from 0; without
one the first is read. Unknown keys are kept and written back.
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
        audio: Sound file, absolute.
        offset_sec: Start inside the file.
        duration_sec: Length; None for the rest of the file.
        text: Transcript as it was written; None if there is none.
        speaker: Speaker's name; None if unknown.
        lang: ISO 639-1 code; None if unknown.
        extra: Every other key of the line.
        channel: Number of the channel, from 0; None for the first one.
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
        """Stable name of the utterance: file stem, and the offset and the channel where they are not 0.

        A name to show, not a key: files of different folders may share it.
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


USES = ("interleave", "speech")  # values of `use`, what the transcript is trusted with
_KEYS = ("audio_filepath", "offset", "duration", "text", "speaker", "lang", "channel")


def read_manifest(path: str | Path) -> list[Utterance]:
    """Utterances of a manifest, in its order.

    Raises:
        UserError: if the file is missing or empty, a line is not a JSON object with an `audio_filepath`, or a
            field has another type; the message names line and field.
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
    """The utterance of one line.

    Args:
        record: The line.
        folder: What relative paths are relative to.

    Raises:
        UserError: if it is none; the message names line and field.
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
    """Checks that `chunks` is a list of [first word, stop word, start, end, text], or that and a modality.

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
    """The path of a file named from a folder, without `..`: caches know a recording by its path.

    As the system does it, `..` is resolved after the symbolic links before it, unless nothing is there: what
    `prepare` has written needs no such links.
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
    """A folder without its `..`: by its name alone, and by its links where that is another folder."""
    plain = os.path.normpath(folder)
    followed = os.path.realpath(folder)
    return plain, plain if os.path.realpath(plain) == followed else followed


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> int:
    """Writes the utterances and returns how many; the file appears complete or not at all.

    Paths below the manifest's folder are written relative to it.
    """
    path = Path(path)
    base = path.parent.absolute()
    count = 0
    # Bytes of a file's name that are not UTF-8 become JSON's own escapes, such as \\udce9.
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
    """16 hex digits of the manifests' contents, in order, to recognise the data of a run."""
    digest = hashlib.sha256()
    for path in manifests:
        digest.update(Path(path).read_bytes() + b"\0")
    return digest.hexdigest()[:16]
