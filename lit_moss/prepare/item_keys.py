"""The types of the keys that several stages read, see `lit_moss.prepare.stage`.

A stage rejects items that it cannot use. A key of another type is a mistake in the whole manifest, so it
stops the run with its file and line, before any model is loaded.
"""

from typing import Any

from lit_moss.records import Record, is_number

_TEXTS = ("text", "lang", "written", "spoken", "heard", "speaker", "question", "answer", "content", "style")
_TIMES = ("offset", "duration")


def check_item(item: dict[str, Any], where: str) -> None:
    """Checks the types of an item and of its messages; keys may be missing or null.

    Args:
        item: A line of a manifest.
        where: File and line, for the message.

    Raises:
        UserError: for a key of another type.
    """
    record = Record(item, where)
    _check_values(record)
    _check_asr_words(record)
    if item.get("messages") is not None:
        for message in record.objects("messages"):
            message.name("role")
            _check_values(message)


def _check_values(record: Record) -> None:
    for key in _TEXTS:
        if not isinstance(record.content.get(key), str | None):
            raise record.error(key, "a string")
    for key in _TIMES:
        record.seconds(key)
    for key in ("id", "document"):
        value = record.content.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise record.error(key, "a string or a whole number")


def _check_asr_words(record: Record) -> None:
    words = record.content.get("asr_words")
    if words is None:
        return
    for word in words if isinstance(words, list) else [words]:
        is_word = isinstance(word, list) and len(word) == 4 and isinstance(word[0], str)
        if not is_word or not all(map(is_number, word[1:])):
            raise record.error("asr_words", "a list of [word, start, end, probability]")
