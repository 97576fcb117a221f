"""Chunks of speech with their text -> rows of interleaved, speech-only and text documents: pure functions.

    chunks       "in being"   "comparatively"   "modern."        each has text ids and codes
    modalities   text         speech            speech
    rows         T T          sosp S S S ………… S S eosp end       neighbouring speech is one stretch

A stretch of speech ends where the heard speech ends: an eosp between two neighbouring chunks would teach the
audio head an end that nothing in the recording tells, at a border that was drawn at random.
Source: arXiv:2510.00499, section 3.1.1: random chunks of 3 to 6 s, each as audio or as its transcript.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lit_moss.audio import rates
from lit_moss.llm.rows import RowFormat

Word = tuple[str, float, float]  # the word, its start and its end in seconds


@dataclass(frozen=True)
class Chunk:
    """A piece of a recording.

    Args:
        text_ids: Its transcript's ids, with the space before it where it continues a text.
        codes: Its codes.
    """

    text_ids: Sequence[int]
    codes: Sequence[int]


@dataclass(frozen=True)
class Span:
    """Where a chunk lies: words `first` to `stop`, codes `code_first` to `code_stop`, ends not included."""

    first: int
    stop: int
    code_first: int
    code_stop: int


# --- documents ----------------------------------------------------------------------------------------------


def document_rng(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one document: the same wherever, whenever and in whatever order it is made."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.default_rng(list(digest[:16]))


def choose_modalities(
    count: int, rng: np.random.Generator, speech_share: float = 0.5, alternate: bool = False
) -> list[str]:
    """`text` or `speech` for each of `count` chunks.

    Args:
        count: Chunks.
        rng: See `document_rng`.
        speech_share: Probability of speech.
        alternate: Never two equal neighbours; only the first is drawn.
    """
    if alternate:
        first = int(rng.random() < speech_share)
        return [("text", "speech")[(first + i) % 2] for i in range(count)]
    return [("text", "speech")[int(x < speech_share)] for x in rng.random(count)]


def interleave(chunks: Sequence[Chunk], modalities: Sequence[str], form: RowFormat) -> list[int]:
    """Rows of one document, document end included."""
    rows: list[int] = []
    codes: list[int] = []
    for chunk, modality in zip(chunks, modalities, strict=True):
        if modality == "speech":
            codes += chunk.codes
            continue
        if codes:
            rows += form.speech(codes)
            codes = []
        rows += chunk.text_ids
    if codes:
        rows += form.speech(codes)
    return ended(rows, form)


def unsupervised(codes: Sequence[int], form: RowFormat) -> list[int]:
    """Rows of a document of speech alone."""
    return ended(form.speech(codes), form)


def text_document(text_ids: Sequence[int], form: RowFormat) -> list[int]:
    """Rows of a document of text alone."""
    return ended(text_ids, form)


def ended(rows: Sequence[int], form: RowFormat) -> list[int]:
    """Rows with the document's end behind them, where the tokenizer has one."""
    return [*rows, *([] if form.end_id is None else [form.end_id])]


# --- text ---------------------------------------------------------------------------------------------------


def text_ids(tokenizer: Any, form: RowFormat, text: str) -> list[int]:
    """Ids of plain text. What reads like a special token in it stays text: it opens no turn and no speech.

    Args:
        tokenizer: Of `lit_moss.llm.backbone.load_text_tokenizer`.
        form: Its row format.
        text: Any text.
    """
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    reserved = {form.sosp_token_id, form.modality_pad_token_id}
    if reserved.isdisjoint(ids):
        return ids
    # Qwen3's <think>, which serves as modality_pad, is an added token but not a special one.
    split: list[int] = []
    for i in ids:
        word = tokenizer.convert_ids_to_tokens(i)
        parts = (word[:1], word[1:]) if i in reserved else ()
        split += [x for p in parts for x in tokenizer.encode(p, add_special_tokens=False)] or [i]
    return split


def space_between(before: str, after: str) -> str:
    """A space between two pieces of a text; nothing beside a script that is written without spaces."""
    if not before or not after or _is_unspaced(before[-1]) or _is_unspaced(after[0]):
        return ""
    return " "


def join_words(words: Sequence[str]) -> str:
    """Words as running text."""
    text = ""
    for word in words:
        text += space_between(text, word) + word
    return text


def _is_unspaced(letter: str) -> bool:
    """Chinese and Japanese, with their punctuation and full-width forms; Thai and its neighbours."""
    n = ord(letter)
    spans = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0xA4CF), (0xF900, 0xFAFF),
             (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF))  # fmt: skip
    return any(a <= n <= b for a, b in spans)


# --- chunks -------------------------------------------------------------------------------------------------


def chunk_words(
    words: Sequence[Word], codes: int, rng: np.random.Generator, min_sec: float = 3.0, max_sec: float = 6.0
) -> list[Span]:
    """Cuts a recording between words into chunks of random length; no word and no code is lost or doubled.

    A cut lies in the middle of the pause between two words, at the nearest border of two codes (80 ms). Of
    the cuts that make a chunk of `min_sec` to `max_sec` and leave enough for another one, that nearest to a
    uniformly drawn length is taken. Where there is none (a long pause, the last seconds) a chunk is longer;
    it is shorter only if the recording is.

    Args:
        words: Words with their times, in order.
        codes: Codes of the recording.
        rng: See `document_rng`.
        min_sec: Shortest chunk.
        max_sec: Longest chunk.

    Raises:
        ValueError: if the times are not in order.
    """
    border = _word_borders(words, codes)
    least = math.ceil(min_sec / rates.SECONDS_PER_CODE)
    most = max(least, math.floor(max_sec / rates.SECONDS_PER_CODE))
    spans: list[Span] = []
    first = 0
    while first < len(words):
        wanted = rng.uniform(least, most)
        stop = _next_cut(border, first, least, most, wanted)
        spans.append(Span(first, stop, border[first], border[stop]))
        first = stop
    return spans


def _next_cut(border: Sequence[int], first: int, least: int, most: int, wanted: float) -> int:
    end = len(border) - 1
    if border[end] - border[first] <= most:
        return end
    fitting = []
    for stop in range(first + 1, end):
        size = border[stop] - border[first]
        if border[end] - border[stop] < least:
            break
        if size > most:
            return min(fitting)[1] if fitting else stop
        if size >= least:
            fitting.append((abs(size - wanted), stop))
    return min(fitting)[1] if fitting else end


def _word_borders(words: Sequence[Word], codes: int) -> list[int]:
    """Code border before each word and behind the last, from 0 to `codes`, never falling."""
    before = 0.0
    for word, start_sec, end_sec in words:
        if not before <= start_sec <= end_sec < math.inf:
            raise ValueError(
                f"word {word!r} from {start_sec} to {end_sec} s after one that starts at {before} s"
            )
        before = start_sec
    border = [0]
    for (_, _, end_sec), (_, start_sec, _) in pairwise(words):
        middle = round((end_sec + start_sec) / 2 / rates.SECONDS_PER_CODE)
        border.append(min(codes, max(border[-1], middle)))
    return [*border, codes]
