"""Speech manifests: JSON lines in NeMo's convention, one utterance a line.

    {"audio_filepath": "wavs/a.flac", "offset": 0.0, "duration": 3.2, "text": "…",
     "speaker": "ljs", "lang": "en"}

`audio_filepath` is absolute or relative to the manifest's folder. `offset` and `duration` are seconds;
without a `duration` the utterance runs to the end of its file. Keys we do not know are kept and written back.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError
from lit_moss.records import Record, is_number, json_lines, printable


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest.

    Args:
        audio: Sound file, absolute.
        offset_sec: Start inside the file.
        duration_sec: Length; None runs to the end of the file.
        text: Transcript as it was written; None if there is none.
        speaker: Speaker's name; None if unknown.
        lang: ISO 639-1 code; None if unknown.
        extra: Every other key of the line.
    """

    audio: Path
    offset_sec: float = 0.0
    duration_sec: float | None = None
    text: str | None = None
    speaker: str | None = None
    lang: str | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def id(self) -> str:
        """Stable name of the utterance: file stem, and the offset where it is not 0.

        A name to show, not a key: files of different folders may share it.
        """
        return printable(self.audio.stem) + (f"@{self.offset_sec:.3f}" if self.offset_sec else "")

    @property
    def key(self) -> str:
        """Unique key of the utterance: its file, and its offset."""
        return printable(self.audio) + (f"@{self.offset_sec:.3f}" if self.offset_sec else "")


_KEYS = {
    "offset": "offset_sec",
    "duration": "duration_sec",
    "text": "text",
    "speaker": "speaker",
    "lang": "lang",
}


def read_manifest(path: str | Path) -> list[Utterance]:
    """Utterances of a manifest, in its order.

    Raises:
        UserError: if the file is missing or empty, a line is not a JSON object with an `audio_filepath`, or a
            field has another type; the message names line and field.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no manifest {path}: expected a JSON-lines file, as `prepare manifest` writes it")
    utterances = [_parse(record, path) for record in json_lines(path, "an object with an audio_filepath")]
    if not utterances:
        raise UserError(f"{path} has no lines: expected one JSON object an utterance")
    return utterances


def _parse(record: Record, path: Path) -> Utterance:
    audio = record.path("audio_filepath")
    if audio is None:
        raise record.error("audio_filepath", "the path of a sound file")
    check_words(record)
    record.name("document")
    return Utterance(
        audio=path.parent.absolute() / audio,
        offset_sec=record.seconds("offset") or 0.0,
        duration_sec=record.seconds("duration"),
        text=record.text("text"),
        speaker=record.text("speaker"),
        lang=record.text("lang"),
        extra={k: v for k, v in record.content.items() if k not in _KEYS and k != "audio_filepath"},
    )


def check_words(record: Record) -> None:
    """`words` is a list of [word, start, end].

    Raises:
        UserError: if it is another thing.
    """
    words = record.content.get("words")
    if words is None:
        return
    for word in words if isinstance(words, list) else [words]:
        whole = isinstance(word, list) and len(word) == 3
        if not whole or not isinstance(word[0], str) or not all(is_number(t) and t >= 0 for t in word[1:]):
            raise record.error("words", "a list of [word, start, end] in seconds, 0 or more")


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> int:
    """Writes the utterances, paths relative to the manifest where they lie below it. Returns how many.

    The file appears whole or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    base = path.parent.absolute()
    partial = path.with_name(path.name + ".partial")
    count = 0
    # Bytes of a file's name that are not UTF-8 become JSON's own escapes, such as \\udce9.
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for u in utterances:
            inside = u.audio.is_relative_to(base)
            entry: dict[str, Any] = {"audio_filepath": str(u.audio.relative_to(base) if inside else u.audio)}
            entry |= {
                theirs: getattr(u, ours) for theirs, ours in _KEYS.items() if getattr(u, ours) is not None
            }
            file.write(json.dumps(entry | u.extra, ensure_ascii=False) + "\n")
            count += 1
    partial.replace(path)
    return count


def fingerprint(manifests: Sequence[str | Path]) -> str:
    """16 hex digits of the manifests' contents, in order: which data a run has seen."""
    digest = hashlib.sha256()
    for path in manifests:
        digest.update(Path(path).read_bytes() + b"\0")
    return digest.hexdigest()[:16]
