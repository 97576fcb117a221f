"""Rows of token documents, one class per kind: interleaved, speech alone, text alone, conversations."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_moss.audio import rates
from lit_moss.corpora.conversations import read_conversations
from lit_moss.corpora.manifest import Utterance, read_manifest
from lit_moss.corpora.sources import entry_kind
from lit_moss.data.conversation import PAIRS, Renderer, Turn, modalities_needed
from lit_moss.data.grouping import group, text_documents
from lit_moss.data.interleave import (
    Chunk,
    TimedChunk,
    choose_modalities,
    chunk_words,
    document_rng,
    interleave,
    join_words,
    read_chunks,
    space_between,
    text_document,
    text_ids,
    unsupervised,
)
from lit_moss.errors import UserError
from lit_moss.hub.code_cache import EncodedUtterances
from lit_moss.llm.replies import ReplyForm
from lit_moss.llm.rows import RowFormat
from lit_moss.records import unique_name

_MAX_SILENT_SHARE = 0.01  # of utterances without a transcript
_REPEAT = "Repeat what the user says."


@dataclass
class Document:
    """One document, as `DocumentWriter.add` takes it.

    Args:
        id: Its name.
        rows: Its rows.
        loss_mask: Which rows count as targets; None for all.
        lang: Language, ISO 639-1.
        speech_sec: Seconds of speech in it.
    """

    id: str
    rows: list[int]
    loss_mask: list[bool] | None = None
    lang: str | None = None
    speech_sec: float = 0.0


class DocumentBuilder(ABC):
    """Documents of one kind, source by source.

    Args:
        tokenizer: Of `lit_moss.llm.backbone.load_text_tokenizer`.
        row_format: Its row format.
        options: Of the kind, see `lit_moss.data.make_documents.OPTIONS`.

    Attributes:
        skipped: Names of the utterances that were left out.
        incomplete: Conversations left out because a turn lacks a modality, counted once per pair.
        without_word_times: Utterances that are one chunk, whatever their length, because the times of their
            words are unknown.
    """

    def __init__(self, tokenizer: Any, row_format: RowFormat, options: dict[str, Any]) -> None:
        self.tokenizer, self.row_format, self.options = tokenizer, row_format, options
        self.skipped: list[str] = []
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
        members = ((u, codes, _seconds(len(codes))) for u, codes in self._speech[path] if codes)
        for name, group_members in group(members, self.options["document_sec"]):
            yield unique_name(name, self._names), group_members

    def _text_ids(self, text: str) -> list[int]:
        return text_ids(self.tokenizer, self.row_format, text)


class UnsupervisedBuilder(DocumentBuilder):
    """Speech alone."""

    @staticmethod
    def recordings(path: Path) -> list[Utterance]:
        return _manifest(path, "unsupervised")

    def documents(self, path: Path) -> Iterator[Document]:
        for name, members in self._groups(path):
            codes = [code for _, codes in members for code in codes]
            rows = unsupervised(codes, self.row_format)
            yield Document(name, rows, lang=members[0][0].lang, speech_sec=_seconds(len(codes)))


class InterleavedBuilder(DocumentBuilder):
    """Text and speech by turns, chunk by chunk."""

    @staticmethod
    def recordings(path: Path) -> list[Utterance]:
        return _manifest(path, "interleaved")

    def add_speech(self, path: Path, utterances: Sequence[Utterance], encoded: EncodedUtterances) -> None:
        super().add_speech(path, utterances, encoded)
        speech = self._speech[path]
        silent = [u.id for u, _ in speech if not (u.text or "").strip() and not u.extra.get("words")]
        if len(silent) > max(1, _MAX_SILENT_SHARE * len(speech)):
            raise UserError(
                f"{path}: {len(silent)} of {len(speech)} utterances have no transcript, e.g. {silent[0]}; "
                "interleaved documents need one: transcribe them, or take kind unsupervised"
            )
        self.skipped += silent
        self._speech[path] = [
            (u, codes) for u, codes in speech if (u.text or "").strip() or u.extra.get("words")
        ]

    def documents(self, path: Path) -> Iterator[Document]:
        options = self.options
        for group_name, members in self._groups(path):
            rng = document_rng(options["seed"], group_name)
            chunks: list[Chunk] = []
            before = ""
            for u, codes in members:
                more, before = self._chunks(u, codes, before, rng)
                chunks += more
            modalities = choose_modalities(len(chunks), rng, options["speech_share"], options["alternate"])
            modalities = [chunk.modality or drawn for chunk, drawn in zip(chunks, modalities, strict=True)]
            for number, (start, stop) in enumerate(_parts(chunks, options["document_sec"])):
                part, chosen = chunks[start:stop], modalities[start:stop]
                rows = interleave(part, chosen, self.row_format)
                spoken = sum(len(c.codes) for c, m in zip(part, chosen, strict=True) if m == "speech")
                name = group_name + (f"+{number}" if number else "")
                yield Document(name, rows, lang=members[0][0].lang, speech_sec=_seconds(spoken))

    def _chunks(
        self, u: Utterance, codes: list[int], before: str, rng: np.random.Generator
    ) -> tuple[list[Chunk], str]:
        """Chunks of one utterance, and the text they end with.

        They are the utterance's own `chunks` (see `read_chunks`), else cut now by its words, else one where
        the words' times are unknown.

        Args:
            u: The utterance.
            codes: Its codes.
            before: Text that it continues.
            rng: Of the document.
        """
        text = (u.text or "").strip()
        if u.extra.get("chunks"):
            pieces = _given_chunks(u, len(codes))
        elif u.extra.get("words"):
            pieces = _cut_chunks(u, len(codes), rng)
        else:
            self.without_word_times += 1
            pieces = [TimedChunk(text, 0, len(codes))]
        chunks = []
        for piece in pieces:
            ids = self._text_ids(space_between(before, piece.text) + piece.text)
            chunks.append(Chunk(ids, codes[piece.code_first : piece.code_stop], piece.modality))
            before = piece.text
        return chunks, before


def _given_chunks(u: Utterance, codes: int) -> list[TimedChunk]:
    try:
        return read_chunks(u.extra["chunks"], codes)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{u.id}: chunks are no list of [first word, stop word, start, end, text] in order ({error}): "
            "chunk them again"
        ) from error


def _cut_chunks(u: Utterance, codes: int, rng: np.random.Generator) -> list[TimedChunk]:
    try:
        words = [(str(w), float(start), float(end)) for w, start, end in u.extra["words"]]
        spans = chunk_words(words, codes, rng)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{u.id}: words are no list of [word, start, end] in seconds, in order ({error}): align them "
            "again"
        ) from error
    # Aligners drop case and punctuation; the transcript has them.
    written = (u.text or "").split()
    spelled = written if len(written) == len(words) else [w for w, _, _ in words]
    return [TimedChunk(join_words(spelled[s.first : s.stop]), s.code_first, s.code_stop) for s in spans]


class TextBuilder(DocumentBuilder):
    """Text alone."""

    @staticmethod
    def recordings(path: Path) -> list[Utterance]:
        if entry_kind(path) == "messages":
            raise UserError(f"{path} holds conversations, expected text: take kind sft")
        return []

    def documents(self, path: Path) -> Iterator[Document]:
        for name, text in text_documents(path):
            rows = text_document(self._text_ids(text), self.row_format)
            if len(rows) > 1:
                yield Document(unique_name(name, self._names), rows)


class ConversationBuilder(DocumentBuilder):
    """Conversations in the modality pairs of `options["pairs"]`."""

    @staticmethod
    def recordings(path: Path) -> list[Utterance]:
        entries = entry_kind(path)
        if entries == "speech":
            return read_manifest(path)
        if entries == "messages":
            conversations = read_conversations(path)
            return [m.recording for _, messages in conversations for m in messages if m.recording]
        raise UserError(
            f"{path} holds {entries}, expected conversations (messages) or a manifest for kind sft"
        )

    def documents(self, path: Path) -> Iterator[Document]:
        options = self.options
        form = ReplyForm(options["reply_form"], options["interleave_text"], options["interleave_codes"])
        renderer = Renderer(self.tokenizer, self.row_format, form)
        for conversation, turns in self._conversations(path):
            name = unique_name(conversation, self._names)
            for pair in options["pairs"]:
                user, reply = PAIRS[pair]
                needed = [modalities_needed(turn.role, user, reply, form) for turn in turns]
                if not all(
                    t.can_be(m) for t, modalities in zip(turns, needed, strict=True) for m in modalities
                ):
                    self.incomplete += 1
                    continue
                rows, mask = renderer.render(turns, user, reply, options["train_on"])
                codes = (t.codes or () for t, m in zip(turns, needed, strict=True) if "speech" in m)
                yield Document(f"{name}/{pair}", rows, mask, speech_sec=_seconds(sum(map(len, codes))))

    def _conversations(self, path: Path) -> Iterator[tuple[str, list[Turn]]]:
        if entry_kind(path) == "speech":
            for u, codes in self._speech[path]:
                text = (u.text or "").strip()
                turns = [Turn(role, text, codes) for role in ("user", "assistant")]
                yield u.id, [Turn("system", _REPEAT), *turns]
            return
        speech = iter(self._speech.get(path, []))
        for name, messages in read_conversations(path):
            yield name, [Turn(m.role, m.text, next(speech)[1] if m.recording else None) for m in messages]


BUILDERS: dict[str, type[DocumentBuilder]] = {
    "interleaved": InterleavedBuilder,
    "unsupervised": UnsupervisedBuilder,
    "text": TextBuilder,
    "sft": ConversationBuilder,
}


def _manifest(path: Path, kind: str) -> list[Utterance]:
    entries = entry_kind(path)
    if entries != "speech":
        raise UserError(f"{path} holds {entries}, expected a manifest for kind {kind}")
    return read_manifest(path)


def _parts(chunks: Sequence[Chunk], document_sec: float) -> list[tuple[int, int]]:
    """(first, stop) of the chunks of each document of a recording that is longer than one."""
    parts, start, part_sec = [], 0, 0.0
    for i, chunk in enumerate(chunks):
        seconds = _seconds(len(chunk.codes))
        if i > start and part_sec + seconds > document_sec + 1e-6:
            parts.append((start, i))
            start, part_sec = i, 0.0
        part_sec += seconds
    return [*parts, (start, len(chunks))]


def _seconds(codes: int) -> float:
    return codes * rates.SECONDS_PER_CODE
