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
        """Stable name of the utterance: file stem, and the offset where it is not 0."""
        return self.audio.stem + (f"@{self.offset_sec:.3f}" if self.offset_sec else "")

    @property
    def key(self) -> str:
        """What tells this utterance from every other: its file, and its offset."""
        return f"{self.audio}" + (f"@{self.offset_sec:.3f}" if self.offset_sec else "")


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
        UserError: if the file is missing or empty, or a line is no JSON object with an `audio_filepath`; the
            message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no manifest {path}: expected a JSON-lines file, as `prepare manifest` writes it")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines(): U+2028 may stand in a text
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text: expected a manifest of JSON lines, is it a sound file?"
        ) from error
    utterances = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            utterances.append(_parse(line, path, number))
    if not utterances:
        raise UserError(f"{path} has no lines: expected one JSON object an utterance")
    return utterances


def _parse(line: str, path: Path, number: int) -> Utterance:
    where = f"{path}, line {number}"
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: no JSON ({error.msg}): expected one object a line") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("audio_filepath"), str):
        raise UserError(f"{where}: got {line[:60]!r}, expected an object with an audio_filepath")
    audio = path.parent.absolute() / entry.pop("audio_filepath")
    known = {ours: entry.pop(theirs) for theirs, ours in _KEYS.items() if entry.get(theirs) is not None}
    for key in ("offset_sec", "duration_sec"):
        value = known.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise UserError(f"{where}: {key.removesuffix('_sec')} is {value!r}, expected seconds, 0 or more")
    for key in ("text", "speaker", "lang"):
        if not isinstance(known.get(key, ""), str):
            raise UserError(f"{where}: {key} is {known[key]!r}, expected a string")
    return Utterance(audio=audio, extra={k: v for k, v in entry.items() if k not in _KEYS}, **known)


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> int:
    """Writes the utterances, paths relative to the manifest where they lie below it. Returns how many.

    The file appears whole or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    base = path.parent.absolute()
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8") as file:
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
