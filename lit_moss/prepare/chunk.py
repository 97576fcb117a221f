"""Adds `chunks` to utterances with word times: the pieces that interleaving uses as text or as speech.

    words    one two three four five six seven eight nine ten …
    chunks   [0, 3, 0.0, 3.2, "one two three"] [3, 9, 3.2, 8.08, "four five …"] …

A chunk is [first word, stop word, start, end, text], in seconds from the start of the utterance. Chunks are
consecutive without gaps, and are cut in pauses between words, at code boundaries (80 ms). There are three
methods:

| method | chunks | modality |
|---|---|---|
| `seconds` | random lengths of 3 to 6 s (arXiv:2510.00499, section 3.1.1) | drawn by `interleave` |
| `words` | text of 10 to 30 words, then speech of 5 to 15 (Spirit-LM, arXiv:2402.05755) | sixth entry |
| `poisson` | speech spans of Poisson(10) words, 30 % of all (arXiv:2502.15814, 2411.17607) | sixth entry |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lit_moss.audio import io, rates
from lit_moss.data.interleave import Span, Word, chunk_words, document_rng, spans_of_words, spelled_chunks
from lit_moss.errors import UserError
from lit_moss.prepare.stage import Item, Rejection, Result, Stage, item_id
from lit_moss.prepare.storage import Storage, local_copy
from lit_moss.records import printable


@dataclass(frozen=True)
class ChunkOptions:
    """Options of `prepare chunk`.

    Args:
        method: seconds, words or poisson, see above.
        min_sec: Method seconds: minimum length of a chunk in seconds.
        max_sec: Method seconds: maximum length of a chunk in seconds.
        min_text_words: Method words: minimum number of words of a text chunk.
        max_text_words: Method words: maximum number of words of a text chunk.
        min_speech_words: Method words: minimum number of words of a speech chunk.
        max_speech_words: Method words: maximum number of words of a speech chunk.
        mean_words: Method poisson: mean number of words of a speech span.
        speech_share: Method poisson: fraction of the words that are speech.
        seed: Seed of all random lengths.
    """

    method: Literal["seconds", "words", "poisson"] = "seconds"
    min_sec: float = 3.0
    max_sec: float = 6.0
    min_text_words: int = 10
    max_text_words: int = 30
    min_speech_words: int = 5
    max_speech_words: int = 15
    mean_words: float = 10.0
    speech_share: float = 0.3
    seed: int = 1

    def __post_init__(self) -> None:
        if self.method not in ("seconds", "words", "poisson"):
            raise UserError(f"method is {self.method!r}, expected seconds, words or poisson")
        for name in ("sec", "text_words", "speech_words"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if not 0 < least <= most:
                raise UserError(
                    f"min_{name} is {least} and max_{name} {most}, expected numbers above 0, the first one "
                    "not above the second"
                )
        if not self.mean_words >= 1 or not 0 <= self.speech_share <= 1:
            raise UserError(
                f"mean_words is {self.mean_words} and speech_share {self.speech_share}, expected 1 or more, "
                "and 0 to 1"
            )


class ChunkStage(Stage):
    """Cuts utterances at word times.

    Speech-only items (`use`) pass unchanged, as do items without `words`, which are counted.
    """

    name = "chunk"
    version = 2
    summary = "chunks of 3 to 6 s at borders of words"
    Options = ChunkOptions

    def __init__(self, options: ChunkOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self.options: ChunkOptions = options

    def is_light(self) -> bool:
        return True

    def run(self, unit: Sequence[Item]) -> Result:
        result = Result(counts={"chunks": 0, "without_word_times": 0})
        for item in unit:
            if item.get("use") == "speech":
                result.items.append(item)
            elif not item.get("words"):
                result.counts["without_word_times"] += 1
                result.items.append(item)
            else:
                self._add_chunks(item, result)
        return result

    def _add_chunks(self, item: Item, result: Result) -> None:
        item = _with_duration(item)
        try:
            words = [(str(word), float(start), float(end)) for word, start, end in item["words"]]
            codes = rates.codes_of_samples(round(float(item["duration"]) * rates.TOKENIZER_RATE_HZ))
            chunks = self._chunks(item, words, codes)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            result.rejected.append(Rejection(item, "word times", str(error), "in order, with a duration"))
            return
        result.items.append(item | {"chunks": chunks})
        result.counts["chunks"] += len(chunks)

    def _chunks(self, item: Item, words: list[Word], codes: int) -> list[list[Any]]:
        options, text = self.options, str(item.get("text") or "").strip()
        rng = document_rng(options.seed, printable(f"{item_id(item)} {text}"))
        modalities: list[str] | None = None
        if options.method == "seconds":
            spans = chunk_words(words, codes, rng, options.min_sec, options.max_sec)
        else:
            cut = self._words_in_turn if options.method == "words" else self._poisson
            lengths, modalities = cut(len(words), rng)
            spans = spans_of_words(words, codes, lengths)
        texts = spelled_chunks(text, [word for word, *_ in words], spans)
        chunks = [_entry(span, chunk_text) for span, chunk_text in zip(spans, texts, strict=True)]
        if modalities is None:
            return chunks
        return [[*chunk, modality] for chunk, modality in zip(chunks, modalities, strict=True)]

    def _words_in_turn(self, count: int, rng: np.random.Generator) -> tuple[list[int], list[str]]:
        """Numbers of words of alternating text and speech chunks, and their modalities (first: random)."""
        options = self.options
        bounds = {
            "text": (options.min_text_words, options.max_text_words),
            "speech": (options.min_speech_words, options.max_speech_words),
        }
        modality = ("text", "speech")[int(rng.integers(2))]
        lengths, modalities = [], []
        while (left := count - sum(lengths)) > 0:
            least, most = bounds[modality]
            lengths.append(min(left, int(rng.integers(least, most + 1))))
            modalities.append(modality)
            modality = "speech" if modality == "text" else "text"
        return lengths, modalities

    def _poisson(self, count: int, rng: np.random.Generator) -> tuple[list[int], list[str]]:
        """Numbers of words of alternating text and speech spans; `speech_share` of the words are speech."""
        spoken = round(self.options.speech_share * count)
        spans: list[int] = []
        while (left := spoken - sum(spans)) > 0:
            spans.append(min(left, max(1, int(rng.poisson(self.options.mean_words)))))
        # Spans need a word of text between them; if there are too few, the last spans are merged.
        written = count - spoken
        while len(spans) > written + 1:
            spans[-2:] = [sum(spans[-2:])]
        if not spans:
            return [count], ["text"]
        # Position of each span among the words of text: all choices are equally likely.
        places = sorted(int(x) for x in rng.choice(written + 1, size=len(spans), replace=False))
        lengths, modalities, before = [], [], 0
        for place, span in zip(places, spans, strict=True):
            for size, modality in ((place - before, "text"), (span, "speech")):
                if size:
                    lengths.append(size)
                    modalities.append(modality)
            before = place
        if written > before:
            lengths.append(written - before)
            modalities.append("text")
        return lengths, modalities


def _with_duration(item: Item) -> Item:
    """The item with a duration; if it states none, it ends with its file."""
    if item.get("duration") is not None or not item.get("audio_filepath"):
        return item
    path = local_copy(item["audio_filepath"])
    return item | {"duration": round(io.span_sec(path, io.info(path), item.get("offset") or 0.0, None), 6)}


def _entry(span: Span, text: str) -> list[Any]:
    start, stop = (round(code * rates.SECONDS_PER_CODE, 2) for code in (span.code_first, span.code_stop))
    return [span.first, span.stop, start, stop, text]
