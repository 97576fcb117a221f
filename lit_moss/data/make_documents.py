"""Manifests and text -> token documents.

    prepare documents train.jsonl --kind interleaved --speech-tokenizer runs/codec_encoder --out data/interleaved

Kinds: `interleaved` (text and speech by turns), `unsupervised` (speech alone), `text`, `sft` (conversations
in four modality pairs). Sources: manifests (JSON lines), `embedded:everyday-en`; for `text` also .txt (an
empty line ends a document), .csv (`id|text|normalised`) and .jsonl with a `text`; for `sft` .jsonl with
`messages`.

Utterances that belong together follow each other in a document: the manifest's key `document`, else the name
before the last dash (LJ001-0001, 103-1240-0000), else the speaker, else the name; names count within one
folder. Where an utterance has `words` ([word, start, end] in seconds) it is cut into chunks of 3 to 6 s; else
it is one chunk.

A manifest given for `sft` stands in for conversations until there are any: the user says a sentence and the
assistant, told so by the system prompt, repeats it.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_moss.data import sources as src
from lit_moss.data.cloze import ClozeItem, make_cloze
from lit_moss.errors import UserError
from lit_moss.hub.kmeans import add_log_mel_argument
from lit_moss.records import file_name, unique_name

if TYPE_CHECKING:
    from lit_moss.corpora.manifest import Utterance
    from lit_moss.data.conversation import Modality, Turn
    from lit_moss.data.interleave import Chunk
    from lit_moss.hub.code_cache import Codes
    from lit_moss.llm.rows import RowFormat

__all__ = ["DEFAULT_BACKBONE", "OPTIONS", "ClozeItem", "make_cloze", "make_documents"]

DEFAULT_BACKBONE = "embedded:smollm2-135m"
# Kind -> its options and their defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "interleaved": {"speech_share": 0.5, "alternate": False, "document_sec": 60.0, "seed": 1},
    "unsupervised": {"document_sec": 60.0},
    "text": {},
    "sft": {"pairs": ["speech-speech", "speech-text", "text-speech", "text-text"], "train_on": "assistant"},
}
_VERSION = 4  # of the rules below: other rules, other documents
_MAX_BAD_SHARE = 0.01
_STAND_IN = "Repeat what the user says."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `prepare documents`."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="manifests, text, embedded:everyday-en")
    parser.add_argument("--kind", required=True, choices=list(OPTIONS))
    parser.add_argument(
        "--speech-tokenizer",
        help="speech tokenizer: checkpoint, run folder, folder, hub id, embedded:whisper-tiny-kmeans",
    )
    add_log_mel_argument(parser)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="whose tokenizer makes the text rows")
    parser.add_argument("--out", type=Path, help="folder to make; without it, one of the cache")
    parser.add_argument(
        "--part", choices=["train", "validation"], default="train", help="of embedded corpora"
    )
    parser.add_argument(
        "--speech-share", type=float, help="interleaved: probability of speech, a chunk (0.5)"
    )
    parser.add_argument(
        "--alternate", action="store_true", default=None, help="interleaved: strictly by turns"
    )
    parser.add_argument(
        "--document-sec", type=float, help="interleaved, unsupervised: most seconds of a document (60)"
    )
    parser.add_argument("--seed", type=int, help="interleaved: of the choices (1)")
    parser.add_argument(
        "--pairs",
        nargs="+",
        action="extend",
        metavar="USER-REPLY",
        help="sft: of speech-speech, speech-text, … (all four)",
    )
    parser.add_argument("--train-on", choices=["assistant", "all"], help="sft: whose turns count (assistant)")


def main(args: argparse.Namespace) -> None:
    """Runs `prepare documents`."""
    names = {name for options in OPTIONS.values() for name in options}
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    folder = make_documents(
        args.kind, args.sources, args.part, args.backbone, args.speech_tokenizer, args.out,
        dict(sorted(options.items())), args.log_mel,
    )  # fmt: skip
    meta = json.loads((folder / "meta.json").read_text())
    print(f"{folder}: {meta['documents']} documents, {meta['rows']} rows of kind {meta['kind']}")


def make_documents(
    kind: str,
    sources: Sequence[str],
    part: str,
    backbone: str,
    speech_tokenizer: str | None,
    out: Path | None = None,
    options: dict[str, Any] | None = None,
    log_mel: str | None = None,
) -> Path:
    """Folder of token documents; made once for the same inputs, then taken from the cache.

    Args:
        kind: interleaved, unsupervised, text or sft.
        sources: See the module.
        part: Part of embedded corpora, `train` or `validation`.
        backbone: Whose tokenizer.
        speech_tokenizer: Speech tokenizer; needed wherever there is speech.
        out: Folder to make; must not exist. None: a folder of the cache, named by a hash of all inputs.
        options: Of the kind, see `OPTIONS`.
        log_mel: Features of the speech tokenizer, see `open_tokenizer`.

    Raises:
        UserError: if a source is missing, empty or of another kind, an option is wrong, or there is no speech tokenizer.
    """
    from lit_moss import assets
    from lit_moss.data.documents import DocumentWriter
    from lit_moss.hub.code_cache import recordings_stamp
    from lit_moss.hub.kmeans import open_tokenizer, speech_tokenizer_fingerprint
    from lit_moss.llm.backbone import load_text_tokenizer, row_format, text_tokenizer_fingerprint
    from lit_moss.llm.rows import audio_vocab_for

    options = _checked(kind, options or {})
    if speech_tokenizer is None and kind != "text":
        raise UserError(
            f"documents of kind {kind} hold speech: give a speech tokenizer, e.g. embedded:whisper-tiny-kmeans"
        )
    if out is not None and out.exists():
        raise UserError(f"{out} exists: documents are never rewritten, give another folder or remove it")
    paths = [src.locate(s, part) for s in sources]
    spoken = {path: _recordings(kind, path) for path in paths}
    tokenizer = load_text_tokenizer(backbone)
    inputs = {
        "version": _VERSION,
        "kind": kind,
        "options": options,
        "text_tokenizer": text_tokenizer_fingerprint(tokenizer),
        "speech_tokenizer": speech_tokenizer_fingerprint(speech_tokenizer, log_mel)
        if speech_tokenizer
        else None,
        "sources": [assets.sha256_of(p)[:16] for p in paths],
    }
    cached = out is None
    if out is None:
        # The recordings' stamps are not among the inputs that documents carry: a copied corpus changes them.
        named_by = json.dumps([inputs, [recordings_stamp(u) for u in spoken.values()]], sort_keys=True)
        name = hashlib.sha256(named_by.encode()).hexdigest()[:16]
        out = assets.cache_dir() / "documents" / f"{kind}-{file_name(paths[0].stem)}-{name}"
        if out.exists():
            return out
    size = open_tokenizer(speech_tokenizer, log_mel).config.quantize_vocab_size if speech_tokenizer else 1024
    form = row_format(tokenizer, audio_vocab_for(size), eosp=size)
    maker = _Maker(kind, tokenizer, form, options)
    for path, utterances in spoken.items():
        maker.listen(path, utterances, speech_tokenizer, inputs["speech_tokenizer"], log_mel)
    meta = inputs | {
        "format": form.to_dict(),
        "format_fingerprint": form.fingerprint,
        "skipped": maker.skipped,
    }
    if cached and out.exists():  # another process was first, with the same content
        return out
    with DocumentWriter(out, meta) as writer:
        for path in spoken:
            for document in maker.documents(path):
                writer.add(kind=kind, **asdict(document))
    if maker.without_pair:
        print(f"{out.name}: {maker.without_pair} conversations lack a modality of a pair", file=sys.stderr)
    return out


def _checked(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a kind."""
    from lit_moss.data.conversation import PAIRS

    if kind not in OPTIONS:
        raise UserError(f"no kind {kind!r} of documents, expected one of {', '.join(OPTIONS)}")
    wrong = sorted(set(options) - set(OPTIONS[kind]))
    if wrong:
        raise UserError(
            f"documents of kind {kind} have no option {', '.join(wrong)}, "
            f"expected {', '.join(OPTIONS[kind]) or 'none'}"
        )
    found = OPTIONS[kind] | options
    if not 0 <= found.get("speech_share", 0.5) <= 1:
        raise UserError(f"speech_share is {found['speech_share']}, expected 0 to 1")
    if not found.get("document_sec", 60.0) > 0:
        raise UserError(f"document_sec is {found['document_sec']}, expected seconds above 0")
    if wrong := [pair for pair in found.get("pairs", []) if pair not in PAIRS]:
        raise UserError(f"pairs has {', '.join(wrong)}, expected some of {', '.join(PAIRS)}")
    if found.get("train_on", "all") not in ("assistant", "all"):
        raise UserError(f"train_on is {found['train_on']!r}, expected assistant or all")
    return found


def _recordings(kind: str, path: Path) -> list["Utterance"]:
    """Utterances of a source whose codes its documents need.

    Raises:
        UserError: if the source is no source of this kind.
    """
    from lit_moss.corpora.manifest import read_manifest

    entries = src.entry_kind(path)
    if kind == "text":
        if entries == "messages":
            raise UserError(f"{path} holds conversations, expected text: take kind sft")
        return []
    if entries == "speech":
        return read_manifest(path)
    if kind == "sft" and entries == "messages":
        return [
            u for _, messages in src.read_conversations(path) for u in src.spoken_messages(path, messages)
        ]
    wanted = "conversations (messages) or a manifest" if kind == "sft" else "a manifest"
    raise UserError(f"{path} holds {entries}, expected {wanted} for kind {kind}")


@dataclass
class _Document:
    id: str
    rows: list[int]
    loss_mask: list[bool] | None = None
    lang: str | None = None
    speech_sec: float = 0.0


class _Maker:
    """Documents of one kind, source by source."""

    def __init__(self, kind: str, tokenizer: Any, form: "RowFormat", options: dict[str, Any]) -> None:
        self.kind, self.tokenizer, self.form, self.options = kind, tokenizer, form, options
        self.skipped: list[str] = []  # utterances that were left out
        self.without_pair = 0
        self._heard: dict[Path, list[tuple[Utterance, list[int]]]] = {}
        self._names: set[str] = set()  # of documents; also what their random choices are drawn by

    def listen(
        self, path: Path, utterances: Sequence["Utterance"], speech_tokenizer: str | None, speech_tokenizer_id: str | None,
        log_mel: str | None,
    ) -> None:  # fmt: skip
        """Codes of a source's recordings, known before the first document is written."""
        from lit_moss.hub.code_cache import encode_utterances

        if not utterances or not speech_tokenizer or not speech_tokenizer_id:
            return
        codes: Codes = encode_utterances(utterances, speech_tokenizer, speech_tokenizer_id, log_mel)
        self.skipped += [utterances[i].id for i in codes.unread]
        heard = list(zip(utterances, codes.of, strict=True))
        if self.kind == "interleaved":
            told = [bool((u.text or "").strip() or u.extra.get("words")) for u, _ in heard]
            silent = [u.id for (u, _), text in zip(heard, told, strict=True) if not text]
            if len(silent) > max(1, _MAX_BAD_SHARE * len(heard)):
                raise UserError(
                    f"{path}: {len(silent)} of {len(heard)} utterances have no transcript, e.g. {silent[0]}; "
                    "interleaved documents need one: transcribe them, or take kind unsupervised"
                )
            self.skipped += silent
            heard = [one for one, text in zip(heard, told, strict=True) if text]
        self._heard[path] = heard

    def documents(self, path: Path) -> Iterator[_Document]:
        """All documents of a source."""
        yield from {
            "interleaved": self._interleaved,
            "unsupervised": self._unsupervised,
            "text": self._text,
            "sft": self._sft,
        }[self.kind](path)

    def _groups(self, path: Path) -> Iterator[tuple[str, list[tuple["Utterance", list[int]]]]]:
        heard = ((u, own, _seconds(len(own))) for u, own in self._heard[path] if own)
        for name, members in src.group(heard, self.options["document_sec"]):
            yield unique_name(name, self._names), members

    def _interleaved(self, path: Path) -> Iterator[_Document]:
        from lit_moss.data.interleave import choose_modalities, document_rng, interleave

        o = self.options
        for group, members in self._groups(path):
            rng = document_rng(o["seed"], group)
            chunks: list[Chunk] = []
            before = ""
            for u, codes in members:
                made, before = self._chunks(u, codes, before, rng)
                chunks += made
            modalities = choose_modalities(len(chunks), rng, o["speech_share"], o["alternate"])
            for number, (start, stop) in enumerate(_parts(chunks, o["document_sec"])):
                part = list(zip(chunks[start:stop], modalities[start:stop], strict=True))
                rows = interleave([c for c, _ in part], [m for _, m in part], self.form)
                spoken = sum(len(c.codes) for c, m in part if m == "speech")
                name = group + (f"+{number}" if number else "")
                yield _Document(name, rows, None, members[0][0].lang, _seconds(spoken))

    def _chunks(self, u: "Utterance", codes: list[int], before: str, rng: Any) -> tuple[list["Chunk"], str]:
        """Chunks of one utterance, by its words where their times are known; and the text they end with.

        Args:
            u: The utterance.
            codes: Its codes.
            before: Text that it continues.
            rng: Of the document.
        """
        from lit_moss.data.interleave import Chunk, chunk_words, join_words, space_between, text_ids

        text = (u.text or "").strip()
        if not u.extra.get("words"):
            ids = text_ids(self.tokenizer, self.form, space_between(before, text) + text)
            return [Chunk(ids, codes)], text
        try:
            words = [(str(w), float(a), float(b)) for w, a, b in u.extra["words"]]
            spans = chunk_words(words, len(codes), rng)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{u.id}: words are no list of [word, start, end] in seconds, in order ({error}): align "
                "them again"
            ) from error
        # Aligners drop case and punctuation; the transcript has them.
        written = text.split()
        spelled = written if len(written) == len(words) else [w for w, _, _ in words]
        chunks = []
        for span in spans:
            piece = join_words(spelled[span.first : span.stop])
            ids = text_ids(self.tokenizer, self.form, space_between(before, piece) + piece)
            chunks.append(Chunk(ids, codes[span.code_first : span.code_stop]))
            before = piece
        return chunks, before

    def _unsupervised(self, path: Path) -> Iterator[_Document]:
        from lit_moss.data.interleave import unsupervised

        for name, members in self._groups(path):
            codes = [c for _, own in members for c in own]
            rows = unsupervised(codes, self.form)
            yield _Document(name, rows, None, members[0][0].lang, _seconds(len(codes)))

    def _text(self, path: Path) -> Iterator[_Document]:
        from lit_moss.data.interleave import text_document, text_ids

        for name, text in src.read_texts(path):
            rows = text_document(text_ids(self.tokenizer, self.form, text), self.form)
            if len(rows) > 1:
                yield _Document(unique_name(name, self._names), rows)

    def _sft(self, path: Path) -> Iterator[_Document]:
        from lit_moss.data.conversation import PAIRS, Renderer

        renderer = Renderer(self.tokenizer, self.form)
        for given, turns in self._conversations(path):
            name = unique_name(given, self._names)
            for pair in self.options["pairs"]:
                user, reply = PAIRS[pair]
                wanted: dict[str, Modality] = {"user": user, "assistant": reply}
                if not all(t.can_be(wanted.get(t.role, "text")) for t in turns):
                    self.without_pair += 1
                    continue
                rows, mask = renderer.render(turns, user, reply, self.options["train_on"])
                spoken = sum(len(t.codes or ()) for t in turns if wanted.get(t.role) == "speech")
                yield _Document(f"{name}/{pair}", rows, mask, None, _seconds(spoken))

    def _conversations(self, path: Path) -> Iterator[tuple[str, list["Turn"]]]:
        from lit_moss.data.conversation import Turn

        if src.entry_kind(path) == "speech":
            for u, own in self._heard[path]:
                text = (u.text or "").strip()
                turns = [Turn(role, text, own) for role in ("user", "assistant")]
                yield u.id, [Turn("system", _STAND_IN), *turns]
            return
        codes = iter(self._heard.get(path, []))
        for name, messages in src.read_conversations(path):
            turns = []
            for m in messages:
                own = next(codes)[1] if m.get("audio_filepath") else None
                turns.append(Turn(m["role"], m.get("content"), own))
            yield name, turns


def _parts(chunks: Sequence["Chunk"], document_sec: float) -> list[tuple[int, int]]:
    """One recording longer than a document -> several, cut between chunks: (first, one behind the last)."""
    parts, start, held = [], 0, 0.0
    for i, chunk in enumerate(chunks):
        seconds = _seconds(len(chunk.codes))
        if i > start and held + seconds > document_sec + 1e-6:
            parts.append((start, i))
            start, held = i, 0.0
        held += seconds
    return [*parts, (start, len(chunks))]


def _seconds(codes: int) -> float:
    from lit_moss.audio import rates

    return codes * rates.SECONDS_PER_CODE
