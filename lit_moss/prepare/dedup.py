"""Removes duplicates among texts, questions and conversations, and of questions used in evaluations.

    item ─ words ─┬─ hash of the words           equal words, ignoring case and punctuation
                  ├─ MinHash of their 5-grams ─ candidates ─ Jaccard similarity >= 0.8
                  └─ does it contain a question of `against`?

The first of several similar items is kept. A word is a sequence of letters; in Chinese each character is a
word. Candidates are found by locality-sensitive hashing, which finds 95 % of the pairs with similarity 0.8,
and nearly all of those with 0.9 and more; a candidate counts only if the exact similarity reaches the
threshold.

All items are in memory with their sketches: 100,000 sentences of LJ Speech (17 words each) take about 1 GB.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from typing import Any

import numpy as np

from lit_moss.errors import UserError
from lit_moss.prepare.items import resolved_items
from lit_moss.prepare.language import is_han
from lit_moss.prepare.stage import Item, Rejection, Result, WholeStage, item_id
from lit_moss.prepare.storage import Storage, local_copy, open_read
from lit_moss.prepare.text_sources import read_text_source
from lit_moss.records import text_lines

_SCHEME, _SEED = "affine32", 1  # of datasketch: others make other sketches
_RECALL = 0.94  # recall for pairs at the threshold; determines how the sketch is divided into bands
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_BATCH_GRAMS = 2**14  # times 128 hashes of 4 bytes at once
_LEAST_INSIDE = 8  # minimum words of a question to search for within longer texts


@dataclass(frozen=True)
class DedupOptions:
    """Options of `prepare dedup`.

    Args:
        against: Files of evaluation questions (.txt with one question per line, or JSON lines with question,
            text or messages); items similar to one of them, or containing one, are dropped.
        jaccard: Minimum similarity of the sets of n-grams, 0 to 1, of duplicates.
        ngram: Number of words of an n-gram; of characters in Chinese.
        permutations: Number of hashes of a sketch.
    """

    against: list[str] = field(default_factory=list)
    jaccard: float = 0.8
    ngram: int = 5
    permutations: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.jaccard <= 1 or self.ngram < 1 or self.permutations < 16:
            raise UserError(
                f"jaccard is {self.jaccard}, ngram {self.ngram}, permutations {self.permutations}, expected "
                "0 to 1, 1 or more, 16 or more"
            )


class DedupStage(WholeStage):
    """Removes duplicates, see the module docstring."""

    name = "dedup"
    Options = DedupOptions

    def __init__(self, options: DedupOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self.options: DedupOptions = options

    @classmethod
    def read_source(cls, source: str) -> Iterator[Item] | None:
        return read_text_source(source)

    def content(self) -> dict[str, Any]:
        files = []
        for path in self.options.against:
            with open_read(path) as file:
                files.append(sha256(file.read()).hexdigest()[:16])
        return super().content() | {"against": files, "scheme": _SCHEME, "seed": _SEED}

    def run_all(self, sources: Sequence[str]) -> Result:
        questions = Questions(self.options)
        for path in self.options.against:
            for number, text in enumerate(_questions(path), start=1):
                questions.add(f"{path.rpartition('/')[2]}:{number}", words_of(text))
        index, result = TextIndex(self.options), Result()
        for item in resolved_items(sources):
            whole, asked = _texts_of(item)
            words = words_of(whole)
            name = item_id(item)
            if not words:
                result.rejected.append(Rejection(item, "no words"))
                continue
            match = questions.find([words, *map(words_of, asked)])
            reason = "evaluation question"
            if match is None:
                match = index.add(name, words)
                reason = "duplicate" if match and match.similarity == 1.0 else "near duplicate"
            if match is None:
                result.items.append(item)
                continue
            item = {**item, "duplicate_of": match.name}
            similarity = round(match.similarity, 4)
            result.rejected.append(Rejection(item, reason, similarity, self.options.jaccard))
        return result


@dataclass(frozen=True)
class Match:
    """An earlier text that is similar to another one.

    Args:
        name: Name of the earlier text.
        similarity: Jaccard similarity of the n-grams; 1 for equal words, and for a question contained in a
            text.
    """

    name: str
    similarity: float


class TextIndex:
    """An index of texts by their words.

    Args:
        options: Options of the stage.

    Raises:
        UserError: if datasketch is not installed.
    """

    def __init__(self, options: DedupOptions) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise UserError("dedup needs datasketch: pip install 'lit-moss[prepare]'") from error
        self._options = options
        self._bands = bands(options.permutations, options.jaccard)
        self._lsh: Any = MinHashLSH(num_perm=options.permutations, params=self._bands)
        self._empty = MinHash(num_perm=options.permutations, seed=_SEED, scheme=_SCHEME, hashfunc=int)
        self._by_hash: dict[bytes, int] = {}
        self._names: list[str] = []
        self._grams: list[np.ndarray] = []

    @property
    def size(self) -> int:
        """Number of texts."""
        return len(self._names)

    def add(self, name: str, words: Sequence[str]) -> Match | None:
        """Adds a text unless it is similar to an earlier one; in that case returns the first such text."""
        match, grams, sketch = self._lookup(words)
        if match is None:
            number = len(self._names)
            self._by_hash[_digest(words)] = number
            self._lsh.insert(number, sketch, check_duplication=False)
            self._names.append(name)
            self._grams.append(grams)
        return match

    def find(self, words: Sequence[str]) -> Match | None:
        """The first text that is similar to this one, or None."""
        return self._lookup(words)[0]

    def _lookup(self, words: Sequence[str]) -> tuple[Match | None, np.ndarray, Any]:
        grams = _grams(words, self._options.ngram)
        sketch = self._empty.copy()
        for start in range(0, len(grams), _BATCH_GRAMS):
            sketch.update_batch(grams[start : start + _BATCH_GRAMS].astype(np.uint32).tolist())
        same = self._by_hash.get(_digest(words))
        if same is not None:
            return Match(self._names[same], 1.0), grams, sketch
        for number in sorted(self._lsh.query(sketch)):
            similarity = _jaccard(grams, self._grams[number])
            if similarity >= self._options.jaccard:
                return Match(self._names[number], similarity), grams, sketch
        return None, grams, sketch


class Questions:
    """Index of evaluation questions; finds texts that are similar to one of them or contain one.

    Args:
        options: Options of the stage.
    """

    def __init__(self, options: DedupOptions) -> None:
        self._index = TextIndex(options)
        # First words of a long question -> its words and its name.
        self._inside: dict[tuple[str, ...], list[tuple[list[str], str]]] = {}

    def add(self, name: str, words: list[str]) -> None:
        """Adds a question."""
        if not words:
            return
        self._index.add(name, words)
        if len(words) >= _LEAST_INSIDE:
            self._inside.setdefault(tuple(words[:_LEAST_INSIDE]), []).append((words, name))

    def find(self, texts: Sequence[list[str]]) -> Match | None:
        """The first question that one of the texts is similar to, or contains."""
        if not self._index.size:
            return None
        matches = (self._index.find(words) or self._held(words) for words in texts if words)
        return next((match for match in matches if match), None)

    def _held(self, words: list[str]) -> Match | None:
        for start in range(len(words) - _LEAST_INSIDE + 1):
            for question, name in self._inside.get(tuple(words[start : start + _LEAST_INSIDE]), ()):
                if words[start : start + len(question)] == question:
                    return Match(name, 1.0)
        return None


def words_of(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation; each Chinese character is a word."""
    words: list[str] = []
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).lower()):
        word, start = match[0].replace("’", "'"), 0
        for i, character in enumerate(word):
            if is_han(character):
                words += [w for w in (word[start:i], character) if w]
                start = i + 1
        if start < len(word):
            words.append(word[start:])
    return words


def bands(permutations: int, jaccard: float) -> tuple[int, int]:
    """(bands, rows per band) of a sketch: the longest bands that find 94 % of the pairs at the threshold.

    Two sketches of similarity s have one of b bands of r rows in common with probability 1 - (1 - s^r)^b.
    """
    for rows in range(permutations, 1, -1):
        count = permutations // rows
        if 1 - (1 - jaccard**rows) ** count >= _RECALL:
            return count, rows
    return permutations, 1


def _grams(words: Sequence[str], size: int) -> np.ndarray:
    """Hashes of the distinct n-grams, sorted, uint64 (n,); a short text is a single n-gram."""
    count = max(1, len(words) - size + 1)
    grams = {" ".join(words[i : i + size]).encode() for i in range(count)}
    hashes = b"".join(blake2b(gram, digest_size=8).digest() for gram in grams)
    return np.unique(np.frombuffer(hashes, dtype="<u8"))


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def _digest(words: Sequence[str]) -> bytes:
    return blake2b(" ".join(words).encode(), digest_size=16).digest()


def _texts_of(item: Item) -> tuple[str, list[str]]:
    """(text to compare with other items, questions in the item).

    Raises:
        UserError: if the item has no text.
    """
    if isinstance(item.get("messages"), list):
        said = [m for m in item["messages"] if isinstance(m, dict) and m.get("role") != "system"]
        asked = [str(m.get("content") or "") for m in said if m.get("role") == "user"]
        return "\n".join(str(m.get("content") or "") for m in said), asked
    if isinstance(item.get("question"), str):
        return f"{item['question']}\n{item.get('answer') or ''}", [item["question"]]
    if isinstance(item.get("text"), str):
        return item["text"], []
    raise UserError(f"{str(item)[:100]}: expected text, question and answer, or messages")


def _questions(path: str) -> Iterator[str]:
    if path.lower().endswith(".txt"):
        for _, line in text_lines(local_copy(path), "questions, one a line"):
            yield line
        return
    for item in resolved_items([path]):
        whole, asked = _texts_of(item)
        yield from asked or [whole]
