"""Reads lists of questions with reference answers, in the formats in which they are published.

| list | content |
|---|---|
| `.jsonl` | lit_moss: `question`, `answers`, and optional `id`, `audio`, `lang`, `group`, `voice` |
| `.jsonl`, `.json` | TriviaQA (`answer.aliases`, or the original's `Data`), WebQuestions (`answers`) |
| `.tsv` | Llama Questions: `Questions`, `Answer`, `Wav Filename` |
| `.csv`, or its folder | OpenAudioBench: `audio_filename`, question and answers by set, sounds in `audios/` |
| `.parquet` | UltraEval-Audio: `audio` with bytes, answers as text or a list |
| `embedded:questions` | 24 simple facts in English and Chinese, for a first test |

Paths of sound files are relative to the list's folder, or to `audios/`, `audio/` or `wavs/` in it.
"""

import ast
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_moss.assets import cache_dir
from lit_moss.errors import UserError, first_line
from lit_moss.evaluate.matching import is_answerable
from lit_moss.files import atomic_write
from lit_moss.prepare.answer_checks import language_of
from lit_moss.records import json_lines, read_text, unique_name

EMBEDDED = "embedded:questions"
EXPECTED = "a list of questions (.jsonl, .json, .tsv, .csv, .parquet, or a folder of OpenAudioBench)"
_EMBEDDED_FILE = Path(__file__).with_name("questions.jsonl")
_LINE = "an object with a question and answers"
# Column names used in the lists, in lower case; the first one that a row contains is used.
_QUESTION = ("question", "questions", "prompt", "instruction", "utterance")
_ANSWERS = ("answers", "answer_normalized_aliases", "answer", "参考答案", "output", "targets")
_AUDIO = ("audio", "audio_filepath", "audio_filename", "wav filename", "source_wav")
_ID = ("id", "questionid", "question_id", "idx")
_ALIASES = ("value", "aliases", "normalizedaliases", "normalized_aliases", "normalized_value")
_SOUND_FOLDERS = (".", "audios", "audio", "wavs")


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        id: Unique id.
        question: Text of the question; "" if it exists as audio only.
        answers: Reference answers; one match is sufficient.
        audio: Sound file of the question, or None.
        lang: Language of question and answers: en or zh.
        group: Group for separate scores, such as "held-out phrasing"; "": none.
        voice: Voice of `prepare synthesize` that speaks the question if it has no audio.
        source: Name of the list, see `list_names`.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    audio: Path | None = None
    lang: str = "en"
    group: str = ""
    voice: str = ""
    source: str = ""


def read_questions(names: Sequence[str], limit: int | None = None, lang: str | None = None) -> list[Question]:
    """Reads questions of several lists, with unique ids.

    Args:
        names: Files or folders, see the module docstring.
        limit: Number of questions per list, from the first. None: all.
        lang: Language of all questions. None: as stated in a line, or detected from the script of the
            question.

    Raises:
        UserError: if a list does not exist or has no questions, or a line is invalid.
    """
    ids: set[str] = set()
    found: list[Question] = []
    for name, source in zip(names, list_names(names), strict=True):
        rows = []
        for row in _rows(name):
            rows.append(row)
            if limit is not None and len(rows) == limit:
                break
        if not rows:
            raise UserError(f"{name} holds no questions: expected {EXPECTED}")
        for row in rows:
            question = _question(row, source, lang)
            found.append(replace(question, id=unique_name(question.id, ids)))
    return found


def list_names(names: Sequence[str]) -> list[str]:
    """Names of lists: the file name, and if several files have the same name, also the parent folders that
    distinguish them. Published lists are called `test` or `test-00000-of-00001`."""
    places = [
        ("embedded", _EMBEDDED_FILE.stem) if name == EMBEDDED else _parts(Path(os.path.abspath(name)))
        for name in names
    ]
    used: set[str] = set()
    return [unique_name(_short_name(place, places), used) for place in places]


def _parts(path: Path) -> tuple[str, ...]:
    return (*path.parent.parts[1:], path.stem)


def _short_name(place: tuple[str, ...], places: Sequence[tuple[str, ...]]) -> str:
    others = [other for other in places if other[-1] == place[-1] and other != place]
    count = 1
    while count < len(place) and any(other[-count:] == place[-count:] for other in others):
        count += 1
    return "-".join(place[-count:])


@dataclass(frozen=True)
class _Row:
    """A row of a list.

    Args:
        fields: Columns of the row.
        where: File and line, for messages.
        number: Number of the row, from 1.
        folder: Folder to which paths are relative.
    """

    fields: Mapping[str, Any]
    where: str
    number: int
    folder: Path

    def get(self, names: Sequence[str]) -> Any:
        """The first of several columns that exists and is not empty; the case of names is ignored."""
        lower = {str(key).strip().lower(): value for key, value in self.fields.items()}
        for name in names:
            value = lower.get(name)
            if value is not None and value != "" and not (isinstance(value, list) and not value):
                return value
        return None

    def error(self, got: str, expected: str) -> UserError:
        """The error for an invalid row."""
        return UserError(f"{self.where}: {got}, expected {expected}")


def _rows(name: str) -> Iterator[_Row]:
    path = _EMBEDDED_FILE if name == EMBEDDED else Path(name)
    if path.is_dir():
        tables = sorted(path.glob("*.csv"))
        if len(tables) != 1:
            raise UserError(
                f"{name} has {len(tables)} .csv files, expected one, with the sounds in audios/; give a "
                "list in another format by its file"
            )
        path = tables[0]
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".json", ".tsv", ".csv", ".parquet"):
        raise UserError(f"{name} is no list of questions: expected {EXPECTED}")
    if not path.is_file():
        raise UserError(f"no file {name}: expected {EXPECTED}")
    if kind == ".jsonl":
        records = ((record.content, record.where, record.number) for record in json_lines(path, _LINE))
    else:
        of_kind = {".json": _json, ".parquet": _parquet}.get(kind, _table)
        records = ((row, f"{path}, row {n}", n) for n, row in enumerate(of_kind(path), start=1))
    for fields, where, number in records:
        yield _Row(fields, where, number, path.parent)


def _table(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .tsv, in which quotes have no special meaning, or of a .csv."""
    text = read_text(path, EXPECTED)  # all line endings are \n in it
    is_tsv = path.suffix.lower() == ".tsv"
    quoting = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {}
    csv.field_size_limit(2**24)  # TriviaQA's aliases exceed the default
    yield from csv.DictReader(io.StringIO(text), **quoting)


def _json(path: Path) -> Iterator[dict[str, Any]]:
    try:
        content = json.loads(read_text(path, EXPECTED))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): expected {EXPECTED}") from error
    rows = content.get("Data", content.get("data")) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no list of objects, expected one, or an object with it as Data")
    yield from rows


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): expected a parquet file") from error


# --- one line -----------------------------------------------------------------------------------------------


def _question(row: _Row, source: str, lang: str | None) -> Question:
    text, audio = row.get(_QUESTION), row.get(_AUDIO)
    if not isinstance(text, str | None):
        raise row.error(f"question is {text!r}", "text")
    text = (text or "").strip()
    if not text and audio is None:
        raise row.error(f"neither question nor audio in {', '.join(map(str, row.fields))}", _LINE)
    answers = tuple(_texts(row.get(_ANSWERS)))
    lang = lang or _text(row, "lang") or language_of(text or " ".join(answers)) or "en"
    if lang not in ("en", "zh"):
        raise row.error(f"lang is {lang!r}", "en or zh")
    if not is_answerable(answers, lang):
        raise row.error(f"no answer for {text[:60]!r}", "one or more that are not empty")
    sound = None if audio is None else _sound(audio, row)
    name = row.get(_ID)
    if name is None:
        name = sound.stem if sound is not None and isinstance(audio, str) else f"{source}-{row.number:05d}"
    return Question(str(name), text, answers, sound, lang, _text(row, "group"), _text(row, "voice"), source)


def _text(row: _Row, key: str) -> str:
    value = row.fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise row.error(f"{key} is {value!r}", "text")
    return value.strip()


def _texts(value: Any) -> list[str]:
    """Answers from a text, a list, a list written as text (`['a', 'b']`), or TriviaQA's object."""
    if isinstance(value, str):
        listed = _written_list(value)
        return [value] if listed is None else _texts(listed)
    if isinstance(value, Mapping):
        lower = {str(key).lower(): entry for key, entry in value.items()}
        return list(dict.fromkeys(text for key in _ALIASES for text in _texts(lower.get(key))))
    if isinstance(value, Sequence):
        return [text for entry in value for text in ([entry] if isinstance(entry, str) else _texts(entry))]
    return [str(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _written_list(value: str) -> list[Any] | None:
    """Parses a list from JSON or a Python literal, otherwise returns None; nothing is executed."""
    if not (value.strip().startswith("[") and value.strip().endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and found:
            return found
    return None


def _sound(audio: Any, row: _Row) -> Path:
    """The sound file of a row; audio inside a parquet file is written to the cache."""
    if isinstance(audio, Mapping):
        content = audio.get("bytes")
        if content:
            return _unpacked(bytes(content), str(audio.get("path") or ""))
        audio = audio.get("path")
    if not isinstance(audio, str) or not audio or "\0" in audio:
        raise row.error(f"audio is {str(audio)[:60]!r}", "the path of a sound file")
    places = [row.folder / folder / audio for folder in _SOUND_FOLDERS]
    return next((place for place in places if place.is_file()), row.folder / audio)


def _unpacked(content: bytes, name: str) -> Path:
    suffix = Path(name).suffix.lower() or (".flac" if content[:4] == b"fLaC" else ".wav")
    path = cache_dir() / "evaluate" / "questions" / f"{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
    if not path.exists():
        with atomic_write(path) as partial:
            partial.write_bytes(content)
    return path
