"""The types of the keys that several stages read, see `lit_moss.prepare.stage`.

A stage rejects items that it cannot use. A key of another type is a mistake in the whole manifest, so it
stops the run with its file and line, before any model is loaded.
"""

from collections.abc import Sequence
from typing import Any

from lit_moss.corpora.manifest import USES, check_chunks
from lit_moss.errors import UserError
from lit_moss.records import Record, is_number

_TEXTS = ("text", "lang", "written", "spoken", "heard", "speaker", "question", "answer", "content", "style")
_TIMES = ("offset", "duration")
_NUMBERS = ("score", "lang_prob", "avg_logprob", "no_speech_prob")


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
    _check_words(record)
    _check_asr_words(record)
    check_chunks(record)
    record.choice("use", USES)
    answers = item.get("answers")
    if not isinstance(answers, list | None) or not all(isinstance(a, str) for a in answers or ()):
        raise record.error("answers", "a list of strings")
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
    record.whole_number("channel")
    for key in _NUMBERS:
        value = record.content.get(key)
        if value is not None and not is_number(value):
            raise record.error(key, "a number")
    for key in ("id", "document", "text_id"):
        value = record.content.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise record.error(key, "a string or a whole number")


def check_needs(item: dict[str, Any], needs: Sequence[str], where: str) -> None:
    """Checks that an item has one of some keys.

    Args:
        item: A line of a manifest.
        needs: The keys; an empty path counts as none.
        where: File and line, for the message.

    Raises:
        UserError: if it has none.
    """
    if not needs or any(item.get(key) not in (None, "") for key in needs):
        return
    lacks = f"neither {' nor '.join(needs)}" if len(needs) > 1 else f"no {needs[0]}"
    expected = "recordings" if "audio_filepath" in needs else "one in every line"
    raise UserError(f"{where}: {lacks}, expected {expected}: got the keys {', '.join(item) or 'none'}")


def _check_words(record: Record) -> None:
    """The form alone: a stage rejects items whose times are null or out of order."""
    words = record.content.get("words")
    if words is None:
        return
    for word in words if isinstance(words, list) else [words]:
        is_word = isinstance(word, list) and len(word) == 3 and isinstance(word[0], str)
        if not is_word or not all(isinstance(t, int | float | None) for t in word[1:]):
            raise record.error("words", "a list of [word, start, end]")


def _check_asr_words(record: Record) -> None:
    words = record.content.get("asr_words")
    if words is None:
        return
    for word in words if isinstance(words, list) else [words]:
        is_word = isinstance(word, list) and len(word) == 4 and isinstance(word[0], str)
        if not is_word or not all(map(is_number, word[1:])):
            raise record.error("asr_words", "a list of [word, start, end, probability]")
