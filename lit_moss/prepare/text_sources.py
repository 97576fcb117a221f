"""Reads texts in common formats as items with a `text`, as a stream.

| source | items |
|---|---|
| `.txt` | texts separated by empty lines |
| `.csv` | metadata of LJ Speech: 32 sentences of a chapter |
| `.parquet` | a text per row, columns `text` (or `content`) and `score` (FineWeb-Edu) |
| a folder | all files of these types below it, by name; others are counted in a message |
| `.jsonl`, `.jsonl.gz` below a folder, or whose path states a score | a text per line |

Chinese Fineweb-Edu V2.1 stores scores in folder names: a file below `4_5` has the score 4. Such a name takes
precedence over a column, which may have another scale. Addresses (s3://…) are supported like paths.
"""

import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from lit_moss.corpora.folders import files_below, print_left_out
from lit_moss.corpora.text import read_texts
from lit_moss.errors import UserError, first_line
from lit_moss.prepare.items import FileName, Item
from lit_moss.prepare.stage import item_id
from lit_moss.prepare.storage import is_remote, local_copy, open_read
from lit_moss.records import is_number, json_lines

_TEXT_COLUMNS = ("text", "content")
_KEPT_COLUMNS = ("id", "score", "lang", "language", "url", "source", "licence", "license", "document")
_BATCH_ROWS = 256
_SCORE_FOLDER = re.compile(r"(\d)_(\d)")
_SCALE_SAMPLE = 100  # number of scores used to detect the scale
_JSON = (".jsonl", ".jsonl.gz")
_LISTS = (".txt", ".csv")


def read_text_source(source: str) -> Iterator[Item] | None:
    """Items of a text source, see the module docstring; None for a manifest (JSON lines).

    Raises:
        UserError: if the source cannot be read or has no texts.
    """
    lower = source.lower()
    if lower.endswith(_LISTS):
        return _listed(source)
    if lower.endswith(".parquet"):
        return _parquet(source, _stem(source))
    if lower.endswith(_JSON):
        return (
            None
            if folder_score(source) is None and not lower.endswith(".gz")
            else _json(source, _stem(source))
        )
    if is_remote(source) or Path(source).is_dir():
        return _folder(source)
    return None


def folder_score(path: str) -> float | None:
    """Score stated by a folder name: 4 for `…/4_5/0001.parquet`; None if there is none."""
    for name in reversed(path.replace("\\", "/").split("/")[:-1]):
        match = _SCORE_FOLDER.fullmatch(name)
        if match and int(match[2]) == int(match[1]) + 1:
            return float(match[1])
    return None


def checked_scale(items: Iterable[Item], min_score: float) -> Iterator[Item]:
    """Yields the items; raises an error if scores cannot be on the same scale as the threshold.

    Raises:
        UserError: if the first 100 scores (or all, if there are fewer) are between 0 and 1 and `min_score` is
            above 1, or if a score is not a number.
    """
    seen, largest = 0, 0.0
    for item in items:
        score = item.get("score")
        if score is not None:
            if not is_number(score):
                raise UserError(f"item {item_id(item)}: score is {score!r}, expected a number")
            seen, largest = seen + 1, max(largest, float(score))
            if seen == _SCALE_SAMPLE:
                _check_scale(seen, largest, min_score)
        yield item
    if 0 < seen < _SCALE_SAMPLE:
        _check_scale(seen, largest, min_score)


def check_min_score(min_score: float) -> None:
    """Checks an option.

    Raises:
        UserError: if no score can reach the value.
    """
    if not 0 <= min_score <= 5:
        raise UserError(f"min_score is {min_score}, expected 0 to 5, the scale of FineWeb-Edu")


def _check_scale(seen: int, largest: float, min_score: float) -> None:
    if largest <= 1.0 < min_score:
        raise UserError(
            f"the first {seen} scores are all from 0 to 1 (largest {largest:g}) and min_score is "
            f"{min_score:g}, on a scale of 0 to 5: give min_score on the source's scale, {min_score / 5:g}"
        )


def _listed(source: str, folder: str = "") -> Iterator[Item]:
    local = local_copy(source)
    for name, text in read_texts(local):
        if local.suffix.lower() == ".txt":  # a copy has another name
            name = _stem(source) + name.removeprefix(local.stem)
        yield _item({}, text, posixpath.join(folder, name), source)


def _json(source: str, name: str) -> Iterator[Item]:
    for record in json_lines(local_copy(source), "an object with a text"):
        if record.text("text") is None:
            raise record.error("text", "a string")
        yield _item(record.content, record.content["text"], f"{name}-{record.number}", source)


def _folder(folder: str) -> Iterator[Item]:
    endings = (".parquet", *_JSON, *_LISTS)
    if is_remote(folder):
        system, inner = fsspec.url_to_fs(folder)
        files = sorted(system.unstrip_protocol(path) for path in _not_hidden(system.find(inner), inner))
    else:
        files = list(map(str, files_below(folder)))
    texts = [path for path in files if path.lower().endswith(endings)]
    others = [Path(path) for path in files if not path.lower().endswith(endings)]
    print_left_out(others, f"texts are read from {' '.join(endings)}: convert what holds texts")
    if not texts:
        raise UserError(f"{folder} has no {', '.join(endings)} files: check the path")
    return _texts_of(texts, folder.rstrip("/") + "/")


def _not_hidden(paths: Iterable[str], folder: str) -> Iterator[str]:
    for path in paths:
        if not any(part.startswith(".") for part in path.removeprefix(folder).split("/")):
            yield path


def _texts_of(files: list[str], folder: str) -> Iterator[Item]:
    for path in files:
        inside = path.split(folder.partition("://")[2] or folder, 1)[-1]
        name, lower = posixpath.join(posixpath.dirname(inside), _stem(inside)), path.lower()
        if lower.endswith(".parquet"):
            yield from _parquet(path, name)
        elif lower.endswith(_JSON):
            yield from _json(path, name)
        else:  # texts in a .txt have names of their own; chapters of several .csv may have the same names
            yield from _listed(path, posixpath.dirname(inside) if lower.endswith(".txt") else name)


def _parquet(source: str, name: str) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_read(source) as file:
        try:
            table = pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
            columns = table.schema_arrow.names
            text_column = next((c for c in _TEXT_COLUMNS if c in columns), None)
            if text_column is None:
                raise UserError(f"{source} has the columns {', '.join(columns)}, expected a column text")
            wanted = [text_column, *(c for c in _KEPT_COLUMNS if c in columns)]
            row = 0
            for batch in table.iter_batches(_BATCH_ROWS, columns=wanted):
                for values in batch.to_pylist():
                    text = values.pop(text_column)
                    if isinstance(text, str) and text.strip():
                        yield _item(values, text, f"{name}-{row}", source)
                    row += 1
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{source} cannot be read as Parquet ({first_line(error)}): fetch it again"
            ) from error


def _item(values: dict[str, Any], text: str, name: str, source: str) -> Item:
    item = {key: value for key, value in values.items() if value is not None and key != "text"}
    for key, ours in (("language", "lang"), ("license", "licence")):
        if key in item:
            item.setdefault(ours, item.pop(key))
    if not isinstance(item.get("lang"), str):
        item.pop("lang", None)
    stated = folder_score(source)
    if stated is not None:
        item["score"] = stated
    item["id"] = name if item.get("id") in (None, "") else str(item["id"])
    named = {} if "source" in item else {"source": FileName(posixpath.basename(source))}
    return {"id": item.pop("id"), "text": text, **json.loads(json.dumps(item, default=str)), **named}


def _stem(path: str) -> str:
    name = posixpath.basename(path)
    for ending in (".gz", ".parquet", ".jsonl", *_LISTS):
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name
