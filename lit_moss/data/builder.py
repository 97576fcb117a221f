"""Base of the builders of token documents (the kinds are in `document_builders`)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_moss.audio import rates
from lit_moss.corpora.manifest import Utterance
from lit_moss.data.grouping import group
from lit_moss.data.interleave import (
    SpokenText,
    Word,
    space_between,
    spans_of_words,
    spelled_chunks,
    text_ids,
)
from lit_moss.errors import UserError
from lit_moss.hub.code_cache import EncodedUtterances
from lit_moss.llm.rows import RowFormat
from lit_moss.records import unique_name


@dataclass
class Document:
    """A document to be written by `DocumentWriter.add`.

    Args:
        id: Name of the document.
        rows: Rows of the document.
        loss_mask: True where a row counts as a target; None: all rows.
        lang: Language, ISO 639-1.
        speech_sec: Seconds of speech in the document.
        speech_text: Text of its speech, see `DocumentWriter.add`; None if it is not requested.
    """

    id: str
    rows: list[int]
    loss_mask: list[bool] | None = None
    lang: str | None = None
    speech_sec: float = 0.0
    speech_text: list[SpokenText] | None = None


class DocumentBuilder(ABC):
    """Builds documents of one kind, one source at a time.

    Args:
        tokenizer: Text tokenizer, as returned by `lit_moss.llm.backbone.load_text_tokenizer`.
        row_format: Row format: ids of text and speech.
        options: Options of the kind, see `lit_moss.data.make_documents.OPTIONS`.

    Attributes:
        skipped: Names of the utterances that were left out.
        silent: Source -> names of utterances that lack a transcript which this kind needs.
        incomplete: Number of conversations left out because a turn lacks a modality, counted once per pair.
        without_word_times: Number of utterances that form a single chunk of any length, because their word
            times are unknown.
    """

    def __init__(self, tokenizer: Any, row_format: RowFormat, options: dict[str, Any]) -> None:
        self.tokenizer, self.row_format, self.options = tokenizer, row_format, options
        self.skipped: list[str] = []
        self.silent: dict[Path, list[str]] = {}
        self.incomplete = self.without_word_times = 0
        self._speech: dict[Path, list[tuple[Utterance, list[int]]]] = {}
        self._names: set[str] = set()  # names of documents; they seed the documents' random choices

    @staticmethod
    @abstractmethod
    def recordings(path: Path) -> list[Utterance]:
        """Utterances of a source whose codes the documents need.

        Raises:
            UserError: if the source is not suitable for this kind.
        """

    @abstractmethod
    def documents(self, path: Path) -> Iterator[Document]:
        """Yields all documents of a source; call `add_speech` for it first."""

    def add_speech(self, path: Path, utterances: Sequence[Utterance], encoded: EncodedUtterances) -> None:
        """Stores the codes of a source's recordings."""
        self.skipped += [utterances[i].id for i in encoded.unread]
        self._speech[path] = list(zip(utterances, encoded.codes, strict=True))

    def forget_speech(self, path: Path) -> None:
        """Frees the codes of a source after its documents are made."""
        self._speech.pop(path, None)

    def meta(self) -> dict[str, Any]:
        """The row format and its fingerprint, for the `meta` of the documents."""
        return {"format": self.row_format.to_dict(), "format_fingerprint": self.row_format.fingerprint}

    def counts(self) -> dict[str, int]:
        """`incomplete` and `without_word_times`, if not 0; complete after all documents are made."""
        counts = {"incomplete": self.incomplete, "without_word_times": self.without_word_times}
        return {name: count for name, count in counts.items() if count}

    def _groups(self, path: Path) -> Iterator[tuple[str, list[tuple[Utterance, list[int]]]]]:
        members = ((u, codes, seconds_of(len(codes))) for u, codes in self._speech[path] if codes)
        for name, group_members in group(members, self.options["document_sec"]):
            yield unique_name(name, self._names), group_members

    def _text_ids(self, text: str) -> list[int]:
        return text_ids(self.tokenizer, self.row_format, text)

    @property
    def _keeps_text(self) -> bool:
        return bool(self.options.get("speech_text"))

    def _said(self, u: Utterance, codes: int, before: str = "") -> list[SpokenText]:
        """Text of an utterance's codes: word by word if word times are known, otherwise as a whole.

        Args:
            u: The utterance.
            codes: Number of codes of the utterance.
            before: Preceding text of the document.
        """
        text = (u.text or "").strip()
        if not u.extra.get("words"):
            return [(0, codes, self._text_ids(space_between(before, text) + text))] if text else []
        words = timed_words(u)
        with aligned(u):
            spans = spans_of_words(words, codes, [1] * len(words))
        said = []
        for span, word in zip(spans, spelled_chunks(text, [w for w, *_ in words], spans), strict=True):
            ids = self._text_ids(space_between(before, word) + word)
            said.append((span.code_first, span.code_stop, ids))
            before = word or before
        return said


def timed_words(u: Utterance) -> list[Word]:
    """Words of an utterance with their times in seconds.

    Raises:
        UserError: if the field is not a list of [word, start, end].
    """
    with aligned(u):
        return [(str(w), float(start), float(end)) for w, start, end in u.extra["words"]]


@contextmanager
def aligned(u: Utterance) -> Iterator[None]:
    """Turns errors in an utterance's words into a one-line error that names the utterance."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{u.id}: words are no list of [word, start, end] in seconds, in order ({error}): align them "
            "again"
        ) from error


def seconds_of(codes: int) -> float:
    """Duration of `codes` codes in seconds."""
    return codes * rates.SECONDS_PER_CODE
