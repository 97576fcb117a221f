"""Builders of token documents: interleaved, speech only, text only, conversations, transcripts."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lit_moss.corpora.conversations import read_conversations
from lit_moss.corpora.manifest import Utterance, read_manifest
from lit_moss.corpora.sources import entry_kind
from lit_moss.data.builder import Document, DocumentBuilder, aligned, seconds_of, timed_words
from lit_moss.data.conversation import PAIRS, Renderer, Turn, modalities_needed
from lit_moss.data.grouping import text_documents
from lit_moss.data.interleave import (
    Chunk,
    SpokenText,
    TimedChunk,
    asr_prompt,
    choose_modalities,
    chunk_words,
    document_rng,
    ended,
    interleave,
    read_chunks,
    shifted,
    space_between,
    spelled_chunks,
    spoken_text,
    stretches_of_codes,
    text_document,
    unsupervised,
)
from lit_moss.data.word_spans import WordSpans, spans_by_turns
from lit_moss.errors import UserError
from lit_moss.hub.code_cache import EncodedUtterances
from lit_moss.llm.replies import ReplyForm
from lit_moss.records import unique_name

_MAX_SILENT_SHARE = 0.01  # maximum fraction of utterances without a transcript
_REPEAT = "Repeat what the user says."


class UnsupervisedBuilder(DocumentBuilder):
    """Documents of speech only."""

    @staticmethod
    def recordings(path: Path) -> list[Utterance]:
        return _manifest(path, "unsupervised")

    def documents(self, path: Path) -> Iterator[Document]:
        for name, members in self._groups(path):
            codes = [code for _, codes in members for code in codes]
            rows = unsupervised(codes, self.row_format)
            said: list[SpokenText] | None = [] if self._keeps_text else None
            if said is not None:
                at, before = 1, ""  # after sosp
                for u, own in members:
                    said += shifted(self._said(u, len(own), before), at)
                    at, before = at + len(own), (u.text or "").strip()
            yield Document(
                name, rows, lang=members[0][0].lang, speech_sec=seconds_of(len(codes)), speech_text=said
            )


class InterleavedBuilder(DocumentBuilder):
    """Documents of alternating chunks of text and speech."""

    @staticmethod
    def recordings(path: Path) -> list[Utterance]:
        return _trusted(path, "interleaved")

    def add_speech(self, path: Path, utterances: Sequence[Utterance], encoded: EncodedUtterances) -> None:
        super().add_speech(path, utterances, encoded)
        speech = self._speech[path]
        silent = [u.id for u, _ in speech if not (u.text or "").strip() and not u.extra.get("words")]
        self.silent[path] = silent
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
                if len(rows) < 2:  # an empty text without codes
                    self.skipped += [u.id for u, _ in members]
                    continue
                spoken = sum(len(c.codes) for c, m in zip(part, chosen, strict=True) if m == "speech")
                name = group_name + (f"+{number}" if number else "")
                said = spoken_text(part, chosen) if self._keeps_text else None
                yield Document(
                    name, rows, lang=members[0][0].lang, speech_sec=seconds_of(spoken), speech_text=said
                )

    def _chunks(
        self, u: Utterance, codes: list[int], before: str, rng: np.random.Generator
    ) -> tuple[list[Chunk], str]:
        """Chunks of one utterance, and the text of the last one.

        The chunks are those of the utterance's `chunks` field (see `read_chunks`); otherwise the utterance is
        cut at its word times, or is a single chunk if these are unknown. With the option `spans` it is always
        cut at the word times, if there are any.

        Args:
            u: The utterance.
            codes: Codes of the utterance.
            before: Preceding text of the document.
            rng: Random number generator of the document.
        """
        text = (u.text or "").strip()
        if self.options.get("spans") and u.extra.get("words"):
            pieces = _spans_by_turns(u, len(codes), rng, WordSpans(**self.options["spans"]))
        elif u.extra.get("chunks"):
            pieces = _given_chunks(u, len(codes))
        elif u.extra.get("words"):
            pieces = _cut_chunks(u, len(codes), rng)
        else:
            self.without_word_times += 1
            pieces = [TimedChunk(text, 0, len(codes))]
        words = self._said(u, len(codes), before) if self._keeps_text and u.extra.get("words") else []
        chunks = []
        for piece in pieces:
            ids = self._text_ids(space_between(before, piece.text) + piece.text)
            own = codes[piece.code_first : piece.code_stop]
            said = self._said_in(piece, ids, words, piece is pieces[-1]) if self._keeps_text else []
            chunks.append(Chunk(ids, own, piece.modality, said))
            before = piece.text
        return chunks, before

    @staticmethod
    def _said_in(
        piece: TimedChunk, ids: Sequence[int], words: Sequence[SpokenText], is_last: bool
    ) -> list[SpokenText]:
        """The text of a chunk's codes: word by word if word times are known, otherwise as a whole."""
        first, stop = piece.code_first, piece.code_stop
        if not words:
            return [(0, stop - first, ids)] if ids else []
        own = [w for w in words if first <= w[0] < stop or (is_last and w[0] == stop)]
        return [(start - first, min(end, stop) - first, ids) for start, end, ids in own]


def _given_chunks(u: Utterance, codes: int) -> list[TimedChunk]:
    try:
        return read_chunks(u.extra["chunks"], codes)
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(
            f"{u.id}: chunks are no list of [first word, stop word, start, end, text] in order ({error}): "
            "chunk them again"
        ) from error


def _cut_chunks(u: Utterance, codes: int, rng: np.random.Generator) -> list[TimedChunk]:
    words = timed_words(u)
    with aligned(u):
        spans = chunk_words(words, codes, rng)
    texts = spelled_chunks((u.text or "").strip(), [w for w, *_ in words], spans)
    return [TimedChunk(text, s.code_first, s.code_stop) for s, text in zip(spans, texts, strict=True)]


def _spans_by_turns(u: Utterance, codes: int, rng: np.random.Generator, spans: WordSpans) -> list[TimedChunk]:
    words = timed_words(u)
    with aligned(u):
        found = spans_by_turns(words, codes, rng, spans)
    texts = spelled_chunks((u.text or "").strip(), [w for w, *_ in words], [span for span, _ in found])
    return [
        TimedChunk(text, span.code_first, span.code_stop, modality)
        for (span, modality), text in zip(found, texts, strict=True)
    ]


class TextBuilder(DocumentBuilder):
    """Documents of text only."""

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
                spoken = [t for t, m in zip(turns, needed, strict=True) if "speech" in m]
                seconds = seconds_of(sum(len(t.codes or ()) for t in spoken))
                said = self._said_in_turns(rows, spoken) if self._keeps_text else None
                yield Document(f"{name}/{pair}", rows, mask, speech_sec=seconds, speech_text=said)

    def _said_in_turns(self, rows: Sequence[int], spoken: Sequence[Turn]) -> list[SpokenText]:
        """Text of the spoken turns. Empty if the speech of a reply is in several stretches (`interleaved`),
        because it is unknown which part of the text each contains."""
        stretches = stretches_of_codes(rows, self.row_format)
        if len(stretches) != len(spoken):
            return []
        return [
            (first, stop, self._text_ids(turn.text))
            for (first, stop), turn in zip(stretches, spoken, strict=True)
            if turn.text
        ]

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


class TranscriptBuilder(DocumentBuilder):
    """Documents of one utterance each: `speech, then its text` (asr) or `text, then its speech` (tts)."""

    @staticmethod
    def recordings(path: Path) -> list[Utterance]:
        return _trusted(path, "transcripts")

    def documents(self, path: Path) -> Iterator[Document]:
        options, rows_of = self.options, {"asr": self._asr, "tts": self._tts}
        for u, codes in self._speech[path]:
            text = (u.text or "").strip()
            if not codes or not text:
                self.skipped += [u.id] if codes else []
                continue
            name = unique_name(u.id, self._names)
            drawn = document_rng(options["seed"], name).random()
            ids = self._text_ids(text)
            for shape, chosen in (
                ("asr", drawn < options["asr"]),
                ("tts", drawn >= 1 - options["tts"]),
            ):
                if not chosen:
                    continue
                rows, given, at = rows_of[shape](ids, codes)
                mask = None if options["train_on"] == "all" else [i >= given for i in range(len(rows))]
                said = shifted(self._said(u, len(codes)), at) if self._keeps_text else None
                yield Document(f"{name}/{shape}", rows, mask, u.lang, seconds_of(len(codes)), said)

    def _asr(self, ids: list[int], codes: list[int]) -> tuple[list[int], int, int]:
        """Rows, the number of rows that are given as the prompt, and the index of the first code."""
        prompt = asr_prompt(self.options["asr_prompt"], codes, self.tokenizer, self.row_format)
        return ended([*prompt, *ids], self.row_format), len(prompt), len(prompt) - 1 - len(codes)

    def _tts(self, ids: list[int], codes: list[int]) -> tuple[list[int], int, int]:
        prompt = [*self._text_ids(self.options["tts_prompt"]), *ids]
        rows = ended([*prompt, *self.row_format.speech(codes)], self.row_format)
        return rows, len(prompt), len(prompt) + 1


BUILDERS: dict[str, type[DocumentBuilder]] = {
    "interleaved": InterleavedBuilder,
    "unsupervised": UnsupervisedBuilder,
    "text": TextBuilder,
    "sft": ConversationBuilder,
    "transcripts": TranscriptBuilder,
}


def _manifest(path: Path, kind: str) -> list[Utterance]:
    entries = entry_kind(path)
    if entries != "speech":
        raise UserError(f"{path} holds {entries}, expected a manifest for kind {kind}")
    return read_manifest(path)


def check_transcripts(source: str, silent: Sequence[str], utterances: int) -> None:
    """Checks that nearly all utterances of a source have a transcript; for kinds that need one.

    Args:
        source: Name of the source.
        silent: Names of the utterances without a transcript, see `DocumentBuilder.silent`.
        utterances: Total number of utterances.

    Raises:
        UserError: if more than one, and more than 1 %, have no transcript.
    """
    if len(silent) > max(1, _MAX_SILENT_SHARE * utterances):
        raise UserError(
            f"{source}: {len(silent)} of {utterances} utterances have no transcript, e.g. {silent[0]}; "
            "interleaved documents need one: transcribe them, or take kind unsupervised"
        )


def _trusted(path: Path, kind: str) -> list[Utterance]:
    """The utterances of a manifest whose transcripts are reliable (not `use: speech`)."""
    found = _manifest(path, kind)
    trusted = [u for u in found if u.extra.get("use") != "speech"]
    if len(trusted) < len(found):
        print(
            f"{path}: {len(found) - len(trusted)} of {len(found)} utterances have `use: speech`, their "
            f"transcripts are not trusted: left out of documents of kind {kind}",
            file=sys.stderr,
        )
    if not trusted:
        raise UserError(f"{path} has no utterance for kind {kind}: take kind unsupervised, or align better")
    return trusted


def _parts(chunks: Sequence[Chunk], document_sec: float) -> list[tuple[int, int]]:
    """Splits the chunks of a recording longer than `document_sec` into documents: (first, stop) of each."""
    parts, start, part_sec = [], 0, 0.0
    for i, chunk in enumerate(chunks):
        seconds = seconds_of(len(chunk.codes))
        if i > start and part_sec + seconds > document_sec + 1e-6:
            parts.append((start, i))
            start, part_sec = i, 0.0
        part_sec += seconds
    return [*parts, (start, len(chunks))]
