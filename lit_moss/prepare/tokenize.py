"""Utterances and spoken conversations -> the same with the number of their `codes`; the codes themselves go
to the one cache of codes, where documents and the decoder's data find them.

A file of the cache holds the recordings of one unit: a killed run loses the unit that it was at. The cache
is of this machine (LIT_MOSS_CACHE): stages on other machines need it on a file system that all of them see.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_moss.corpora.manifest import Utterance
from lit_moss.errors import UserError
from lit_moss.hub.code_cache import code_cache
from lit_moss.hub.recordings import Entry, RecordingCache
from lit_moss.hub.tokenizer import NamedTokenizer
from lit_moss.prepare.channel_note import note_channels
from lit_moss.prepare.shards import unreadable
from lit_moss.prepare.stage import NOT_CONTENT, Item, Result, Stage
from lit_moss.prepare.storage import Storage, local_copy

_UNIT_ITEMS = 64


@dataclass(frozen=True)
class TokenizeOptions:
    """Options of `prepare tokenize`.

    Args:
        speech_tokenizer: Speech tokenizer: checkpoint, run folder, folder, hub id,
            embedded:whisper-tiny-kmeans.
        log_mel: Features of the speech tokenizer, causal or whisper; null takes what its folder states.
        device: cpu, cuda:0 …; auto takes the GPU where there is one.
    """

    speech_tokenizer: str = "embedded:whisper-tiny-kmeans"
    log_mel: Literal["causal", "whisper"] | None = None
    device: str = field(default="auto", metadata=NOT_CONTENT)


class TokenizeStage(Stage):
    """Encodes recordings, of items and of their messages.

    An item with a recording that cannot be read is rejected; a conversation as a whole.
    """

    name = "tokenize"
    version = 2
    needs = ("audio_filepath", "messages")
    Options = TokenizeOptions

    def __init__(self, options: TokenizeOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self.options: TokenizeOptions = options
        self._tokenizer = NamedTokenizer(options.speech_tokenizer, options.log_mel)
        self._cache: RecordingCache | None = None

    def content(self) -> dict[str, Any]:
        # By its fingerprint: a run that was trained on has another tokenizer under the same name.
        return {"speech_tokenizer": self._tokenizer.fingerprint}

    def units(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        unit: list[Item] = []
        for item in items:
            unit.append(item)
            if len(unit) == _UNIT_ITEMS:
                yield unit
                unit = []
        if unit:
            yield unit

    def open(self) -> None:
        self._cache = code_cache(self._tokenizer, self.options.device, keep_on_device=True)

    def run(self, unit: Sequence[Item]) -> Result:
        assert self._cache is not None, "call open first"
        recordings = [[_utterance(part) for part in _spoken_parts(item)] for item in unit]
        entries = iter(self._cache.entries([u for of_item in recordings for u in of_item]))
        result = Result(counts={"codes": 0})
        for item, of_item in zip(unit, recordings, strict=True):
            self._add(item, [next(entries) for _ in of_item], result)
        return result

    def _add(self, item: Item, entries: Sequence[Entry], result: Result) -> None:
        if not entries and item.get("messages") is not None:  # a conversation in writing
            result.items.append(item)
            return
        if not entries:
            raise UserError(f"{str(item)[:100]}: neither audio_filepath nor messages, expected recordings")
        if unread := [entry for entry in entries if not _count(entry)]:
            result.rejected.append(unreadable(item, unread[0].reason, any(e.is_refused for e in unread)))
            return
        counts = [_count(entry) for entry in entries]
        note_channels(_spoken_parts(item), result)
        result.items.append(_with_codes(item, counts))
        result.counts["codes"] += sum(counts)


def _count(entry: Entry) -> int:
    return 0 if entry.values is None else len(entry.values)


def _spoken_parts(item: Item) -> list[Item]:
    """The item, or those of its messages that have a recording."""
    if item.get("messages") is None:
        return [item] if item.get("audio_filepath") else []
    return [message for message in item["messages"] if message.get("audio_filepath")]


def _utterance(part: Item) -> Utterance:
    offset_sec = float(part.get("offset") or 0.0)
    path = local_copy(part["audio_filepath"])
    return Utterance(path, offset_sec, part.get("duration"), channel=part.get("channel"))


def _with_codes(item: Item, counts: Sequence[int]) -> Item:
    if item.get("messages") is None:
        return item | {"codes": counts[0]}
    left = iter(counts)
    messages = [m | {"codes": next(left)} if m.get("audio_filepath") else m for m in item["messages"]]
    return item | {"messages": messages}
