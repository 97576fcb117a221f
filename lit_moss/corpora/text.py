"""Text lists: plain text, LJ Speech's `id|text|normalised`, and JSON lines with a `text`."""

import re
from collections.abc import Iterator
from pathlib import Path

from lit_moss.errors import UserError
from lit_moss.records import json_lines, read_text, text_lines

_CSV_SENTENCES = 32  # sentences of LJ Speech's metadata per document: about 600 words
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n")


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of every document of a text list.

    In .txt, an empty line ends a document; a .csv is LJ Speech's metadata, whose chapters are split into
    documents of 32 sentences; in .jsonl, each `text` is a document.

    Raises:
        UserError: if the file is damaged or has another format; the message names the line.
    """
    if path.suffix.lower() == ".txt":
        for i, text in enumerate(re.split(r"\n\s*\n", read_text(path, "a text file"))):
            if text.strip():
                yield f"{path.stem}-{i}", text.strip()
    elif path.suffix.lower() == ".csv":
        for name, sentences in _csv_chapters(path).items():
            for i in range(0, len(sentences), _CSV_SENTENCES):
                yield f"{name}-{i}", " ".join(sentences[i : i + _CSV_SENTENCES])
    else:
        for record in json_lines(path, "an object with a text"):
            text = record.text("text")
            if text is None:
                raise record.error("text", "a string")
            if text.strip():
                yield f"{path.stem}-{record.number}", text


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """Reads (name of the document or .csv chapter, sentence) pairs of a text list, in order."""
    if path.suffix.lower() == ".csv":
        return [(name, s) for name, sentences in _csv_chapters(path).items() for s in sentences]
    return [
        (name, sentence.strip())
        for name, text in read_texts(path)
        for sentence in _SENTENCE_END.split(text)
        if sentence.strip()
    ]


def _csv_chapters(path: Path) -> dict[str, list[str]]:
    """Chapter -> its sentences, in normalised form where the line has one."""
    chapters: dict[str, list[str]] = {}
    for number, line in text_lines(path, "LJ Speech's metadata: id|text|normalised"):
        name, *texts = (part.strip() for part in line.split("|"))
        if not name and not texts:
            continue
        if not texts:
            raise UserError(f"{path}, line {number}: got {line[:60]!r}, expected id|text|normalised")
        if written := [text for text in texts if text]:
            chapters.setdefault(name.rpartition("-")[0] or name, []).append(written[-1])
    return chapters


def read_named_sentences(path: Path) -> list[tuple[str, str]]:
    """Reads (name, sentence) of every line of a text file, or (id, sentence) of LJ Speech's metadata (.csv).

    Raises:
        UserError: if an id occurs twice or is not a valid file name.
    """
    named = []
    table = path.suffix.lower() == ".csv"
    for number, line in text_lines(path, "a text file"):
        fields = line.split("|") if table else [f"{path.stem}-{number - 1:06d}", line]
        if table and line.strip() and len(fields) < 2:
            raise UserError(f"{path}, line {number}: no `|`, expected id|text as LJ Speech's metadata.csv")
        if fields[-1].strip():
            named.append((fields[0].strip(), fields[-1].strip()))
    names = [name for name, _ in named]
    if len(set(names)) != len(names) or any(not n or Path(n).name != n for n in names):
        raise UserError(f"{path}: ids must be plain names, each once; expected lines of `id|text`")
    return named
