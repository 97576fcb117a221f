"""Held-out cloze items, in text and speech: a context and two continuations, one of which is true."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from lit_moss import assets
from lit_moss.corpora.manifest import Utterance, read_manifest
from lit_moss.corpora.sources import entry_kind, locate
from lit_moss.corpora.text import read_sentences
from lit_moss.data.grouping import belongs_to
from lit_moss.data.interleave import document_rng, join_words, space_between, text_ids
from lit_moss.data.make_documents import CODES_OF_TEXT
from lit_moss.files import make_once
from lit_moss.hub.code_cache import encode_utterances
from lit_moss.hub.recordings import recordings_stamp
from lit_moss.hub.tokenizer import NamedTokenizer
from lit_moss.llm.heldout import ClozeItem
from lit_moss.llm.rows import RowFormat

_VERSION = 5  # of the rules below; a change makes new items
_CONTEXT_SENTENCES = 2
_CANDIDATES = 16
_LEAST_ROWS = 5  # minimum of a sentence
_Key = tuple[int, Any, int]  # source, group of the sentence, position in the group
_Item = tuple[int, int, int]  # first sentence of the context, true and other continuation


def make_cloze(
    sources: Sequence[str],
    part: str,
    backbone: str,
    speech_tokenizer: str | None,
    items: int = 64,
    seed: int = 1,
    log_mel: str | None = None,
) -> list[ClozeItem]:
    """Makes held-out items in the manner of spoken StoryCloze; the result is cached.

    The true sentence is the one after the context. If it is not in the held-out part, which is chosen by a
    hash, the next held-out sentence of the same group is used; such items come last. The other sentence is
    the one closest in length among 16 random ones from other groups (see `document_key`), or from the same
    group if there is no other. The sentences of a spoken context form one stretch, as adjacent utterances do
    in training: an eosp between them would be new to the model.

    In a corpus of unrelated sentences, such as the embedded one, nothing distinguishes the true sentence from
    the other, so cloze accuracy is 50 % by construction; only the perplexity of the items is meaningful.

    Args:
        sources: Manifests, embedded corpora, and text files (text items only); conversations yield no items.
        part: Part of embedded corpora, `train` or `validation`.
        backbone: Model whose tokenizer makes the text rows.
        speech_tokenizer: Speech tokenizer. None: text items only.
        items: Maximum number of items of each modality.
        seed: Seed of the random choices.
        log_mel: Features of the speech tokenizer, see `open_tokenizer`.
    """
    from lit_moss.llm.backbone import load_text_tokenizer, row_format, text_tokenizer_fingerprint
    from lit_moss.llm.rows import audio_vocab_for

    text_tokenizer = load_text_tokenizer(backbone)
    paths = [locate(source, part) for source in sources]
    spoken = {path: _utterances(path) for path in paths}
    tokenizer = NamedTokenizer(speech_tokenizer, log_mel) if speech_tokenizer else None
    inputs = [
        _VERSION,
        items,
        seed,
        text_tokenizer_fingerprint(text_tokenizer),
        tokenizer.fingerprint if tokenizer else None,
        [recordings_stamp(utterances) for utterances in spoken.values()] if tokenizer else [],
        [assets.sha256_of(path) for path in paths],
    ]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]

    def write(file: Path) -> None:
        codes = tokenizer.opened.config.quantize_vocab_size if tokenizer else CODES_OF_TEXT
        rows = row_format(text_tokenizer, audio_vocab_for(codes), eosp=codes)
        made = _text_items(spoken, text_tokenizer, rows, items, seed)
        if tokenizer:
            made += _speech_items(list(spoken.values()), tokenizer, rows, items, seed)
        file.write_text(json.dumps([asdict(item) for item in made]))

    kept = make_once(assets.cache_dir() / "documents" / f"cloze-{digest}.json", write)
    return [ClozeItem(**item) for item in json.loads(kept.read_text())]


def _text_items(
    spoken: dict[Path, list[Utterance]], text_tokenizer: Any, rows: RowFormat, items: int, seed: int
) -> list[ClozeItem]:
    keys: list[_Key] = []
    sentences: list[str] = []
    for number, (path, utterances) in enumerate(spoken.items()):
        for key, sentence in _sentences(path, utterances):
            keys.append((number, *key))
            sentences.append(sentence)
    # Ids of each sentence, with the space that precedes it in running text.
    ids = [text_ids(text_tokenizer, rows, space_between("a", s) + s) if s else [] for s in sentences]
    return [
        ClozeItem("text", text_ids(text_tokenizer, rows, join_words(sentences[first:i])), ids[i], ids[other])
        for first, i, other in draw_items(keys, list(map(len, ids)), items, seed)
    ]


def _speech_items(
    sources: Sequence[Sequence[Utterance]], tokenizer: NamedTokenizer, rows: RowFormat, items: int, seed: int
) -> list[ClozeItem]:
    keys: list[_Key] = []
    codes: list[list[int]] = []
    for number, utterances in enumerate(sources):
        keys += [(number, *_key(u, i)) for i, u in enumerate(utterances)]
        codes += encode_utterances(utterances, tokenizer).codes
    speech = [rows.speech(c) for c in codes]
    return [
        ClozeItem(
            "speech",
            rows.speech([c for sentence in codes[first:i] for c in sentence])[:-1],
            speech[i][1:],
            speech[other][1:],
        )
        for first, i, other in draw_items(keys, list(map(len, codes)), items, seed)
    ]


def draw_items(keys: Sequence[_Key], lengths: Sequence[int], items: int, seed: int) -> list[_Item]:
    """Chooses the sentences of items: (first of the context, true continuation, other continuation).

    Args:
        keys: Source, group and position of each sentence, in order.
        lengths: Number of ids of each sentence; sentences with fewer than 5 are skipped.
        items: Maximum number of items.
        seed: Seed of the random choices.
    """
    rng = document_rng(seed, "cloze")
    usable = [i for i, length in enumerate(lengths) if length >= _LEAST_ROWS]
    group = [key[:2] for key in keys]
    follows = {b for a, b in pairwise(usable) if b == a + 1 and group[a] == group[b]}
    at_once = {i for i in follows if keys[i][2] == keys[i - 1][2] + 1}
    order = [*rng.permutation(sorted(at_once)).tolist(), *rng.permutation(sorted(follows - at_once)).tolist()]
    drawn: list[_Item] = []
    for i in order:
        if len(drawn) == items:
            break
        first = i - 1
        while i - first < _CONTEXT_SENTENCES and first in follows:
            first -= 1
        far = [j for j in usable if group[j] != group[i]] or [j for j in usable if not first <= j <= i + 1]
        if far:
            candidates = rng.choice(far, size=min(_CANDIDATES, len(far)), replace=False).tolist()
            drawn.append((first, i, min(candidates, key=lambda j, i=i: abs(lengths[j] - lengths[i]))))
    return drawn


def _utterances(path: Path) -> list[Utterance]:
    return read_manifest(path) if entry_kind(path) == "speech" else []


def _key(utterance: Utterance, number: int) -> tuple[Any, int]:
    """Group of an utterance, and its position there: the number at the end of its file name, if any."""
    place = utterance.audio.stem.rpartition("-")[2]
    return belongs_to(utterance), int(place) if place.isdecimal() and not utterance.offset_sec else number


def _sentences(path: Path, utterances: Sequence[Utterance]) -> list[tuple[tuple[Any, int], str]]:
    """Group and position of each sentence of a source, and the sentence."""
    if utterances:
        return [(_key(u, i), (u.text or "").strip()) for i, u in enumerate(utterances)]
    if entry_kind(path) != "text":
        return []
    return [((name, i), sentence) for i, (name, sentence) in enumerate(read_sentences(path))]
