"""Text files that users write: a reader of text, one of JSON lines, and typed fields with clear errors.

A UTF-8 byte order mark is skipped at the start of any line: editors write one at the start of a file, and
`cat` moves it into the middle of another. Only a newline ends a line: a text may contain U+2028. A wrong
field is reported in one line: file, line number, field, what was found, what was expected.

    for record in json_lines("chat.jsonl", "an object with messages"):
        for message in record.objects("messages"):
            message.seconds("duration")
                -> chat.jsonl, line 1: messages[0].duration is '1.0', expected seconds, a number from 0 on
"""

import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError

BYTE_ORDER_MARK = "\ufeff"
_SHOWN = 60  # characters of a value that a message quotes


def printable(text: str | Path) -> str:
    """The text with what UTF-8 cannot encode (bytes of a file's name that are not UTF-8) as `\\udce9`."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def file_name(text: str) -> str:
    """A name that a file can have: without separators, at most 200 bytes, to leave room for an ending."""
    plain = printable(text).translate(dict.fromkeys(map(ord, "/\\\0\n\r"), "_"))
    plain = plain if plain.strip(".") else "_" * len(plain)  # `.` and `..` are folders
    return plain.encode("utf-8")[:200].decode("utf-8", "ignore")


def unique_name(name: str, used: set[str]) -> str:
    """The name, or the name with the first free suffix `-2`, `-3` …; it is added to `used`."""
    name = printable(name)
    free = next(n for n in chain([name], (f"{name}-{k}" for k in count(2))) if n not in used)
    used.add(free)
    return free


def text_lines(path: str | Path, expected: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a text file; `-` is standard input, `.gz` is unpacked.

    Args:
        path: The file.
        expected: What the file should be, for the error: "LJ Speech's metadata".

    Raises:
        UserError: if it cannot be read or is not UTF-8; the message names the line.
    """
    number = 0
    try:
        for number, line in enumerate(_byte_lines(path), start=1):
            text = line.decode("utf-8").lstrip(BYTE_ORDER_MARK)
            if "\0" in text:
                got = f"{path}, line {number}: holds zero bytes, as UTF-16 does"
                raise UserError(f"{got}, expected {expected}: convert it to UTF-8")
            yield number, text.removesuffix("\n").removesuffix("\r")
    except FileNotFoundError as error:
        raise UserError(f"no file {path}: expected {expected}") from error
    except UnicodeDecodeError as error:
        got = f"{path}, line {number}: not UTF-8 text (byte {error.object[error.start]:#04x})"
        raise UserError(f"{got}, expected {expected}: convert it to UTF-8, or is it a sound file?") from error
    except (OSError, EOFError, zlib.error) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{path} cannot be read ({why}): expected {expected}") from error


def read_text(path: str | Path, expected: str) -> str:
    """A whole text file, see `text_lines`."""
    return "\n".join(line for _, line in text_lines(path, expected))


def _byte_lines(path: str | Path) -> Iterator[bytes]:
    path = Path(path)
    if str(path) == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):
            yield from sys.stdin.buffer
        else:  # a StringIO has no bytes below it
            yield from (line.encode() for line in sys.stdin)
        return
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        yield from file


def json_lines(path: str | Path, expected: str) -> Iterator["Record"]:
    """Objects of a JSON-lines file; empty lines are skipped.

    Args:
        path: The file, `-` for standard input.
        expected: What a line should be, for errors: "an object with an audio_filepath".

    Raises:
        UserError: if it cannot be read, or a line is not a JSON object; the message names the line.
    """
    for number, line in text_lines(path, f"JSON lines, each {expected}"):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else error
            got = f"{where}: no JSON ({why}): got {line.strip()[:_SHOWN]!r}"
            raise UserError(f"{got}, expected {expected} on one line") from error
        if not isinstance(content, dict):
            raise UserError(f"{where}: got {line.strip()[:_SHOWN]!r}, expected {expected}")
        yield Record(content, where, number)


@dataclass(frozen=True)
class Record:
    """A JSON object with typed access to its fields. A field that is null counts as missing.

    Args:
        content: The object.
        where: File and line.
        number: Number of the line.
        prefix: Place inside the line: `messages[0].`.
    """

    content: dict[str, Any]
    where: str
    number: int = 0
    prefix: str = ""

    def error(self, key: str, expected: str) -> UserError:
        """The error to raise for a field that is not as expected."""
        value = self.content.get(key)
        if value is None:
            got = "missing" if key not in self.content else "null"
        else:
            got = repr(value)
            got = got if len(got) <= _SHOWN else f"{got[:_SHOWN]}…"
        return UserError(f"{self.where}: {self.prefix}{key} is {got}, expected {expected}")

    def text(self, key: str) -> str | None:
        """A string, None if there is none."""
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(key, "a string")
        if printable(value) != value:
            raise self.error(key, "a string of Unicode without lone surrogates")
        return value

    def path(self, key: str) -> str | None:
        """A file's path, None if there is none or it is empty; bytes that are not UTF-8 are `\\udc80` …."""
        value = self.content.get(key)
        if value is None or value == "":
            return None
        try:
            if not isinstance(value, str) or b"\0" in os.fsencode(value):
                raise self.error(key, "the path of a file")
        except UnicodeEncodeError as error:
            raise self.error(key, "the path of a file") from error
        return value

    def seconds(self, key: str) -> float | None:
        """A time in seconds: a finite number from 0 on; None if there is none."""
        value = self.content.get(key)
        if value is None:
            return None
        if not is_number(value) or value < 0:
            raise self.error(key, "seconds, a number from 0 on")
        return value

    def whole_number(self, key: str) -> int | None:
        """A whole number from 0 on; None if there is none."""
        value = self.content.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise self.error(key, "a whole number, 0 or more")
        return value

    def name(self, key: str) -> str | None:
        """A name, which may be written as a whole number: 0 is `"0"`; None if there is none."""
        value = self.content.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise self.error(key, "a string or a whole number")
        return str(value) if isinstance(value, int) else self.text(key)

    def choice(self, key: str, options: Collection[str]) -> str | None:
        """One of some strings, None if there is none."""
        value = self.content.get(key)
        if value is not None and not (isinstance(value, str) and value in options):
            raise self.error(key, f"one of {', '.join(options)}")
        return value

    def whole_numbers(self, key: str) -> list[int]:
        """A list of whole numbers from 0 on."""
        value = self.content.get(key)
        expected = "a list of whole numbers, 0 or more"
        if not isinstance(value, list):
            raise self.error(key, expected)
        for i, number in enumerate(value):
            if type(number) is not int or number < 0:
                raise self._entry(key, i, number).error(f"{key}[{i}]", expected)
        return value

    def objects(self, key: str) -> list["Record"]:
        """A list of objects, each as a record."""
        value = self.content.get(key)
        if not isinstance(value, list):
            raise self.error(key, "a list of objects")
        for i, entry in enumerate(value):
            if not isinstance(entry, dict):
                raise self._entry(key, i, entry).error(f"{key}[{i}]", "an object")
        return [
            Record(entry, self.where, self.number, f"{self.prefix}{key}[{i}].")
            for i, entry in enumerate(value)
        ]

    def _entry(self, key: str, i: int, value: Any) -> "Record":
        return Record({f"{key}[{i}]": value}, self.where, self.number, self.prefix)


def is_number(value: Any) -> bool:
    """Whether the value is a finite number; `true` and `false` are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return abs(float(value)) < float("inf")
    except OverflowError:
        return False
