"""Converts chunks of speech and text to rows of interleaved, speech-only and text-only documents.

    chunks       "in being"   "comparatively"   "modern."        each with text ids and codes
    modalities   text         speech            speech
    rows         T T          sosp S S S ………… S S eosp end       adjacent speech is one stretch

eosp occurs only where the speech ends: between adjacent speech chunks it would teach the audio head to stop
at a random cut, which cannot be heard in the recording.
Source: arXiv:2510.00499, section 3.1.1: random chunks of 3 to 6 s, each as audio or as its transcript.
"""

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lit_moss.audio import rates
from lit_moss.llm.rows import RowFormat

Word = tuple[str, float, float]  # word, start and end in seconds
SpokenText = tuple[int, int, Sequence[int]]  # first code (or row), code (or row) after the last, text ids


@dataclass(frozen=True)
class Chunk:
    """A piece of a recording.

    Args:
        text_ids: Text ids of its transcript, with a leading space if it continues a text.
        codes: Codes of its audio.
        modality: `text` or `speech`, or None if it is still to be chosen.
        said: Text of the codes, in pieces: first code, code after the last, text ids.
    """

    text_ids: Sequence[int]
    codes: Sequence[int]
    modality: str | None = None
    said: Sequence[SpokenText] = ()


@dataclass(frozen=True)
class Span:
    """Position of a chunk: words `first` to `stop` and codes `code_first` to `code_stop`, both exclusive."""

    first: int
    stop: int
    code_first: int
    code_stop: int


@dataclass(frozen=True)
class TimedChunk:
    """A chunk of an utterance: its text, its codes (stop exclusive), and its modality if already chosen."""

    text: str
    code_first: int
    code_stop: int
    modality: str | None = None


# --- documents ----------------------------------------------------------------------------------------------


def document_rng(seed: int, name: str) -> np.random.Generator:
    """Random number generator of a document; depends only on the seed and the document's name."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.default_rng(list(digest[:16]))


def choose_modalities(
    count: int, rng: np.random.Generator, speech_share: float = 0.5, alternate: bool = False
) -> list[str]:
    """`text` or `speech` for each of `count` chunks.

    Args:
        count: Number of chunks.
        rng: Random number generator, see `document_rng`.
        speech_share: Probability of speech.
        alternate: Modalities alternate strictly; only the first one is random.
    """
    if alternate:
        first = int(rng.random() < speech_share)
        return [("text", "speech")[(first + i) % 2] for i in range(count)]
    return [("text", "speech")[int(x < speech_share)] for x in rng.random(count)]


def interleave(chunks: Sequence[Chunk], modalities: Sequence[str], row_format: RowFormat) -> list[int]:
    """Rows of one document, including the row that ends it."""
    rows: list[int] = []
    codes: list[int] = []
    for chunk, modality in zip(chunks, modalities, strict=True):
        if modality == "speech":
            codes += chunk.codes
            continue
        if codes:
            rows += row_format.speech(codes)
            codes = []
        rows += chunk.text_ids
    if codes:
        rows += row_format.speech(codes)
    return ended(rows, row_format)


def spoken_text(chunks: Sequence[Chunk], modalities: Sequence[str]) -> list[SpokenText]:
    """Text of the speech in `interleave`'s rows, with row indices of the codes."""
    said: list[SpokenText] = []
    at, is_open = 0, False
    for chunk, modality in zip(chunks, modalities, strict=True):
        if modality == "speech":
            at += bool(chunk.codes) and not is_open  # sosp
            is_open |= bool(chunk.codes)
            said += shifted(chunk.said, at)
            at += len(chunk.codes)
            continue
        at += is_open + len(chunk.text_ids)  # eosp
        is_open = False
    return said


def shifted(said: Sequence[SpokenText], rows: int) -> list[SpokenText]:
    """The same entries, with positions increased by `rows`."""
    return [(first + rows, stop + rows, ids) for first, stop, ids in said]


def unsupervised(codes: Sequence[int], row_format: RowFormat) -> list[int]:
    """Rows of a speech-only document."""
    return ended(row_format.speech(codes), row_format)


def text_document(text_ids: Sequence[int], row_format: RowFormat) -> list[int]:
    """Rows of a text-only document."""
    return ended(text_ids, row_format)


def asr_prompt(prompt: str, codes: Sequence[int], tokenizer: Any, row_format: RowFormat) -> list[int]:
    """Rows after which the transcript of the codes begins.

    Args:
        prompt: Text before the speech; may be empty.
        codes: Codes of the speech.
        tokenizer: Text tokenizer.
        row_format: Row format: ids of text and speech.
    """
    return [*text_ids(tokenizer, row_format, prompt), *row_format.speech(codes)]


def stretches_of_codes(rows: Sequence[int], row_format: RowFormat) -> list[tuple[int, int]]:
    """(first, stop) of the codes in each stretch of speech, without sosp and eosp."""
    stretches, first = [], None
    for i, row in enumerate(rows):
        if row == row_format.eosp_row and first is not None:
            stretches.append((first, i))
            first = None
        elif row == row_format.sosp_token_id:
            first = i + 1
    return stretches


def ended(rows: Sequence[int], row_format: RowFormat) -> list[int]:
    """The rows, followed by the row that ends a document, if the text tokenizer has one."""
    return [*rows, *([] if row_format.end_id is None else [row_format.end_id])]


# --- text ---------------------------------------------------------------------------------------------------


def text_ids(tokenizer: Any, row_format: RowFormat, text: str) -> list[int]:
    """Ids of plain text. Names of special tokens in it stay text: they cannot start a turn or speech.

    Threads may share the tokenizer. transformers stores `split_special_tokens` in the tokenizer itself, so a
    call without it would produce special tokens from the text of another thread: every call here sets it.

    Args:
        tokenizer: Text tokenizer, see `lit_moss.llm.backbone.load_text_tokenizer`.
        row_format: Row format: ids of text and speech.
        text: Any text.
    """
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    reserved = {row_format.sosp_token_id, row_format.modality_pad_token_id}
    if reserved.isdisjoint(ids):
        return ids
    # Qwen3's <think>, used as modality_pad, is an added token but not a special one.
    split_ids: list[int] = []
    for i in ids:
        word = tokenizer.convert_ids_to_tokens(i)
        parts = (word[:1], word[1:]) if i in reserved else ()
        pieces = [tokenizer.encode(p, add_special_tokens=False, split_special_tokens=True) for p in parts]
        split_ids += [x for ids in pieces for x in ids] or [i]
    return split_ids


def space_between(before: str, after: str) -> str:
    """The space between two pieces of text; empty next to a script that is written without spaces."""
    if not before or not after or _is_unspaced(before[-1]) or _is_unspaced(after[0]):
        return ""
    return " "


def join_words(words: Sequence[str]) -> str:
    """Joins words into a text."""
    text = ""
    for word in words:
        text += space_between(text, word) + word
    return text


def _is_unspaced(letter: str) -> bool:
    """Chinese and Japanese, with their punctuation and full-width forms; Thai and related scripts."""
    n = ord(letter)
    spans = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0xA4CF), (0xF900, 0xFAFF),
             (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF))  # fmt: skip
    return any(a <= n <= b for a, b in spans)


# --- chunks -------------------------------------------------------------------------------------------------


def chunk_words(
    words: Sequence[Word], codes: int, rng: np.random.Generator, min_sec: float = 3.0, max_sec: float = 6.0
) -> list[Span]:
    """Cuts a recording between words into chunks of random length that contain each word and code once.

    A cut lies in the middle of the pause between two words, at the nearest code boundary (80 ms). Among the
    cuts that give a chunk of `min_sec` to `max_sec` and leave enough for another chunk, the one nearest to a
    uniformly drawn length is chosen. If there is none (a long pause, the last seconds), the chunk is longer;
    it is shorter only if the recording is.

    Args:
        words: Words with their times, in order.
        codes: Number of codes of the recording.
        rng: Random number generator, see `document_rng`.
        min_sec: Minimum length of a chunk in seconds.
        max_sec: Maximum length of a chunk in seconds.

    Raises:
        ValueError: if the word times are not in order.
    """
    boundary = word_boundaries(words, codes)
    least = math.ceil(min_sec / rates.SECONDS_PER_CODE)
    most = max(least, math.floor(max_sec / rates.SECONDS_PER_CODE))
    spans: list[Span] = []
    first = 0
    while first < len(words):
        target = rng.uniform(least, most)
        stop = _next_cut(boundary, first, least, most, target)
        spans.append(Span(first, stop, boundary[first], boundary[stop]))
        first = stop
    return spans


def spans_of_words(words: Sequence[Word], codes: int, lengths: Sequence[int]) -> list[Span]:
    """Spans with the given numbers of words, cut as in `chunk_words`.

    Raises:
        ValueError: if the word times are not in order.
    """
    boundary = word_boundaries(words, codes)
    spans, first = [], 0
    for length in lengths:
        spans.append(Span(first, first + length, boundary[first], boundary[first + length]))
        first += length
    return spans


def spelled_chunks(text: str, words: Sequence[str], spans: Sequence[Span]) -> list[str]:
    """Text of each chunk with the case and punctuation of the transcript, which aligners drop.

    The words are searched in the transcript, in order; punctuation belongs to the preceding word. If they do
    not match, chunks are made of the transcript's whitespace-separated pieces if there are as many, otherwise
    of the words themselves.

    Args:
        text: The transcript.
        words: The aligned words; `spans` covers all of them.
        spans: Chunks of at least one word each, in order.
    """
    starts = _word_starts(text, words)
    if starts is None:
        written = text.split()
        spelled = written if len(written) == len(words) else words
        return [join_words(spelled[span.first : span.stop]) for span in spans]
    return [text[starts[span.first] : starts[span.stop]].strip() for span in spans]


def _word_starts(text: str, words: Sequence[str]) -> list[int] | None:
    """Offset of each word in the text, then the text's length; None if a letter belongs to no word."""
    fold = str.lower if len(text.lower()) == len(text) else str  # the lower case of a letter may be longer
    folded, starts, at = fold(text), [], 0
    for word in words:
        start = folded.find(fold(word), at)
        if start < 0 or any(map(str.isalnum, text[at:start])):
            return None
        starts.append(start)
        at = start + len(word)
    if any(map(str.isalnum, text[at:])):
        return None
    # An opening quotation mark or bracket belongs to the following word.
    return [0, *(_with_opening(text, start) for start in starts[1:]), len(text)]


def _with_opening(text: str, start: int) -> int:
    while start and not text[start - 1].isspace() and unicodedata.category(text[start - 1]) in ("Ps", "Pi"):
        start -= 1
    # A straight quotation mark is an opening one at the start of the text or after a space.
    if start and text[start - 1] in "\"'" and (start == 1 or text[start - 2].isspace()):
        start -= 1
    return start


def read_chunks(chunks: Sequence[Sequence[Any]], codes: int) -> list[TimedChunk]:
    """Reads the chunks of a manifest line, as written by `prepare chunk`: [first word, stop word, start, end,
    text], times in seconds, and optionally a modality (`text` or `speech`).

    The chunks are consecutive; the first starts and the last ends with the recording.

    Raises:
        ValueError: if an entry has other fields, or starts after the next one.
    """
    boundary = [0]
    for entry in chunks[1:]:
        boundary.append(min(codes, round(float(entry[2]) / rates.SECONDS_PER_CODE)))
    boundary.append(codes)
    read = []
    for entry, (first, stop) in zip(chunks, pairwise(boundary), strict=True):
        modality = entry[5] if len(entry) == 6 else None
        if not 5 <= len(entry) <= 6 or modality not in (None, "text", "speech") or first > stop:
            raise ValueError(f"got {list(entry)!r}")
        read.append(TimedChunk(str(entry[4]), first, stop, modality))
    return read


def _next_cut(boundary: Sequence[int], first: int, least: int, most: int, target: float) -> int:
    end = len(boundary) - 1
    if boundary[end] - boundary[first] <= most:
        return end
    fitting = []
    for stop in range(first + 1, end):
        size = boundary[stop] - boundary[first]
        if boundary[end] - boundary[stop] < least:
            break
        if size > most:
            return min(fitting)[1] if fitting else stop
        if size >= least:
            fitting.append((abs(size - target), stop))
    return min(fitting)[1] if fitting else end


def word_boundaries(words: Sequence[Word], codes: int) -> list[int]:
    """Code boundary before each word and after the last one, from 0 to `codes`, non-decreasing."""
    previous_sec = 0.0
    for word, start_sec, end_sec in words:
        if not previous_sec <= start_sec <= end_sec < math.inf:
            raise ValueError(
                f"word {word!r} from {start_sec} to {end_sec} s after one that starts at {previous_sec} s"
            )
        previous_sec = start_sec
    boundary = [0]
    for (_, _, end_sec), (_, start_sec, _) in pairwise(words):
        middle = round((end_sec + start_sec) / 2 / rates.SECONDS_PER_CODE)
        boundary.append(min(codes, max(boundary[-1], middle)))
    return [*boundary, codes]
