"""Held-out items: a context and two continuations, of which one is true, in text and in speech."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from lit_moss.data import sources as src

_VERSION = 5  # of the rules below: other rules, other items
_CONTEXT_SENTENCES = 2
_CANDIDATES = 16
_LEAST_ROWS = 5  # of a sentence
_Key = tuple[int, Any, int]  # source, what a sentence belongs to, its place in there


@dataclass(frozen=True)
class ClozeItem:
    """A context and two continuations, as rows.

    Args:
        modality: text or speech.
        context: One or two sentences. In speech: sosp and their codes, one stretch that goes on.
        true: The next sentence. In speech: its codes and eosp.
        other: A sentence of something else, of like length.
    """

    modality: Literal["text", "speech"]
    context: list[int]
    true: list[int]
    other: list[int]


def make_cloze(
    sources: Sequence[str],
    part: str,
    backbone: str,
    speech_tokenizer: str | None,
    items: int = 64,
    seed: int = 1,
    log_mel: str | None = None,
) -> list[ClozeItem]:
    """Held-out items, after spoken StoryCloze; made once, then taken from the cache.

    The true sentence is the one behind the context. Where that is missing, because a hash chose what is held
    out, it is the next held-out one of the same group; such items come after all others. The other sentence
    is, of 16 random ones of other groups (see `document_key`), the nearest in length; of the same group where
    there is no other. The sentences of a spoken item stand in one stretch, as neighbouring utterances do in
    training: an eosp between them would be new to the model.

    On a corpus of unrelated sentences, such as the embedded one, nothing tells the true sentence from the
    other, and cloze is 50 % by construction; only the perplexity of its items means something.

    Args:
        sources: Manifests, embedded corpora, text files (text items only); conversations give none.
        part: Part of embedded corpora, `train` or `validation`.
        backbone: Whose tokenizer.
        speech_tokenizer: Speech tokenizer; None makes text items alone.
        items: Most items of each modality.
        seed: Seed of what is drawn.
        log_mel: Features of the speech tokenizer, see `open_tokenizer`.
    """
    from lit_moss import assets
    from lit_moss.data.interleave import join_words, space_between, text_ids
    from lit_moss.hub.code_cache import encode_utterances, recordings_stamp
    from lit_moss.hub.kmeans import open_tokenizer, speech_tokenizer_fingerprint
    from lit_moss.llm.backbone import load_text_tokenizer, row_format, text_tokenizer_fingerprint
    from lit_moss.llm.rows import audio_vocab_for

    tokenizer = load_text_tokenizer(backbone)
    paths = [src.locate(s, part) for s in sources]
    speech_tokenizer_id = (
        speech_tokenizer_fingerprint(speech_tokenizer, log_mel) if speech_tokenizer else None
    )
    spoken = {path: _utterances(path) for path in paths}
    stamps = [recordings_stamp(u) for u in spoken.values()] if speech_tokenizer else []
    hashes = [assets.sha256_of(path) for path in paths]
    inputs = [
        _VERSION,
        items,
        seed,
        text_tokenizer_fingerprint(tokenizer),
        speech_tokenizer_id,
        stamps,
        hashes,
    ]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    kept = assets.cache_dir() / "documents" / f"cloze-{digest}.json"
    if kept.exists():
        return [ClozeItem(**item) for item in json.loads(kept.read_text())]
    size = open_tokenizer(speech_tokenizer, log_mel).config.quantize_vocab_size if speech_tokenizer else 1024
    form = row_format(tokenizer, audio_vocab_for(size), eosp=size)

    keys: list[_Key] = []
    told: list[str] = []
    for number, (path, utterances) in enumerate(spoken.items()):
        for key, sentence in _sentences(path, utterances):
            keys.append((number, *key))
            told.append(sentence)
    ids = [text_ids(tokenizer, form, space_between("a", s) + s) if s else [] for s in told]
    found = [
        ClozeItem("text", text_ids(tokenizer, form, join_words(told[first:i])), ids[i], ids[other])
        for first, i, other in draw_items(keys, list(map(len, ids)), items, seed)
    ]
    if speech_tokenizer and speech_tokenizer_id:
        keys, heard = [], []
        for number, utterances in enumerate(spoken.values()):
            keys += [(number, *_key(u, i)) for i, u in enumerate(utterances)]
            heard += (
                encode_utterances(utterances, speech_tokenizer, speech_tokenizer_id, log_mel).of
                if utterances
                else []
            )
        rows = [form.speech(codes) for codes in heard]
        for first, i, other in draw_items(keys, list(map(len, heard)), items, seed):
            context = form.speech([c for codes in heard[first:i] for c in codes])[:-1]
            found.append(ClozeItem("speech", context, rows[i][1:], rows[other][1:]))

    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        made = Path(scratch) / "items.json"
        made.write_text(json.dumps([asdict(item) for item in found]))
        made.replace(kept)
    return found


def draw_items(
    keys: Sequence[_Key], lengths: Sequence[int], items: int, seed: int
) -> list[tuple[int, int, int]]:
    """Which sentences make an item: (first of the context, true one behind it, other).

    Args:
        keys: Source, group and place of each sentence, in order.
        lengths: Their ids; sentences of fewer than 5 are passed over.
        items: Most items.
        seed: Seed.
    """
    from lit_moss.data.interleave import document_rng

    rng = document_rng(seed, "cloze")
    usable = [i for i, length in enumerate(lengths) if length >= _LEAST_ROWS]
    group = [key[:2] for key in keys]
    follows = {b for a, b in pairwise(usable) if b == a + 1 and group[a] == group[b]}
    at_once = {i for i in follows if keys[i][2] == keys[i - 1][2] + 1}
    order = [*rng.permutation(sorted(at_once)).tolist(), *rng.permutation(sorted(follows - at_once)).tolist()]
    found: list[tuple[int, int, int]] = []
    for i in order:
        if len(found) == items:
            break
        first = i - 1
        while i - first < _CONTEXT_SENTENCES and first in follows:
            first -= 1
        far = [j for j in usable if group[j] != group[i]] or [j for j in usable if not first <= j <= i + 1]
        if far:
            drawn = rng.choice(far, size=min(_CANDIDATES, len(far)), replace=False).tolist()
            other = min(drawn, key=lambda j, i=i: abs(lengths[j] - lengths[i]))
            found.append((first, i, other))
    return found


def _utterances(path: Path) -> list[Any]:
    from lit_moss.corpora.manifest import read_manifest

    return read_manifest(path) if src.entry_kind(path) == "speech" else []


def _key(u: Any, number: int) -> tuple[Any, int]:
    """What an utterance belongs to, and its place there: the number that ends its name, if one does."""
    place = u.audio.stem.rpartition("-")[2]
    return src.belongs_to(u), int(place) if place.isdecimal() and not u.offset_sec else number


def _sentences(path: Path, utterances: Sequence[Any]) -> list[tuple[tuple[Any, int], str]]:
    """What each sentence of a source belongs to, its place, the sentence."""
    if utterances:
        return [(_key(u, i), (u.text or "").strip()) for i, u in enumerate(utterances)]
    if src.entry_kind(path) != "text":
        return []
    return [((name, i), sentence) for i, (name, sentence) in enumerate(src.read_sentences(path))]
