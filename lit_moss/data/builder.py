"""What builders of all kinds of token documents share (the kinds are in `document_builders`)."""

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
    """One document, as `DocumentWriter.add` takes it.

    Args:
        id: Its name.
        rows: Its rows.
        loss_mask: Which rows count as targets; None for all.
        lang: Language, ISO 639-1.
        speech_sec: Seconds of speech in it.
        speech_text: What its speech says, see `DocumentWriter.add`; None where that is not asked for.
    """

    id: str
    rows: list[int]
    loss_mask: list[bool] | None = None
    lang: str | None = None
    speech_sec: float = 0.0
    speech_text: list[SpokenText] | None = None


class DocumentBuilder(ABC):
    """Documents of one kind, source by source.

    Args:
        tokenizer: Of `lit_moss.llm.backbone.load_text_tokenizer`.
        row_format: Its row format.
        options: Of the kind, see `lit_moss.data.make_documents.OPTIONS`.

    Attributes:
        skipped: Names of the utterances that were left out.
        silent: Those of each source that lack a transcript which this kind needs.
        incomplete: Conversations left out because a turn lacks a modality, counted once per pair.
        without_word_times: Utterances that are one chunk, whatever their length, because the times of their
            words are unknown.
    """

    def __init__(self, tokenizer: Any, row_format: RowFormat, options: dict[str, Any]) -> None:
        self.tokenizer, self.row_format, self.options = tokenizer, row_format, options
        self.skipped: list[str] = []
        self.silent: dict[Path, list[str]] = {}
        self.incomplete = self.without_word_times = 0
        self._speech: dict[Path, list[tuple[Utterance, list[int]]]] = {}
        self._names: set[str] = set()  # of documents; their random choices are drawn by name

    @staticmethod
    @abstractmethod
    def recordings(path: Path) -> list[Utterance]:
        """Utterances of a source whose codes its documents need.

        Raises:
            UserError: if the source does not suit this kind.
        """

    @abstractmethod
    def documents(self, path: Path) -> Iterator[Document]:
        """All documents of a source, whose speech has been added before."""

    def add_speech(self, path: Path, utterances: Sequence[Utterance], encoded: EncodedUtterances) -> None:
        """Takes the codes of a source's recordings."""
        self.skipped += [utterances[i].id for i in encoded.unread]
        self._speech[path] = list(zip(utterances, encoded.codes, strict=True))

    def forget_speech(self, path: Path) -> None:
        """Frees the codes of a source whose documents have been made."""
        self._speech.pop(path, None)

    def meta(self) -> dict[str, Any]:
        """What the rows mean, for the documents' `meta`."""
        return {"format": self.row_format.to_dict(), "format_fingerprint": self.row_format.fingerprint}

    def counts(self) -> dict[str, int]:
        """`incomplete` and `without_word_times` where they are not 0; known once all documents are made."""
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
        """What an utterance's codes say: of each word where their times are known, else as a whole.

        Args:
            u: The utterance.
            codes: Its codes.
            before: Text that it continues.
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
    """Words of an utterance with their times.

    Raises:
        UserError: if they are no such list.
    """
    with aligned(u):
        return [(str(w), float(start), float(end)) for w, start, end in u.extra["words"]]


@contextmanager
def aligned(u: Utterance) -> Iterator[None]:
    """Errors in an utterance's words as one line that names it."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{u.id}: words are no list of [word, start, end] in seconds, in order ({error}): align them "
            "again"
        ) from error


def seconds_of(codes: int) -> float:
    """Seconds of so many codes."""
    return codes * rates.SECONDS_PER_CODE
