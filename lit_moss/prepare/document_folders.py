"""Items -> folders of token documents, block by block, so that memory does not grow with their number.

    items ─ by kind and part ─ blocks/interleaved/00000.jsonl …  ─ codes from the cache ─ interleaved/
                                                                                          interleaved-validation/

A block ends where a recording's utterances end, so that documents do not depend on blocks. Neither do they
depend on where the sound files are: names of documents, their random choices and the hash of their sources
are free of folders.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from lit_moss.assets import cache_dir
from lit_moss.corpora.manifest import Utterance
from lit_moss.data.builder import Document
from lit_moss.data.document_builders import BUILDERS, check_transcripts
from lit_moss.data.documents import META, DocumentWriter
from lit_moss.data.grouping import document_key
from lit_moss.data.make_documents import DocumentRecipe
from lit_moss.errors import UserError
from lit_moss.hub.code_cache import EncodedUtterances, encode_utterances
from lit_moss.prepare.items import read_items
from lit_moss.prepare.stage import Item
from lit_moss.prepare.storage import Storage, local_copy
from lit_moss.records import Record, printable

BLOCK_ITEMS = 2000  # at least, as a file of the code cache
_DOCUMENTS = " documents"  # ends the name of a folder's first count
Name = str  # of a folder: `interleaved`, `interleaved-validation`


@dataclass
class FolderCounts:
    """What a folder holds.

    Args:
        items: Items that went in.
        documents: Documents.
        rows: Their rows.
        speech_sec: Seconds of speech in them.
        longest: Rows of the longest document, written or not.
        longer: Documents longer than the context.
        rows_longer: Their rows.
        of_builder: Counts of the builder.
    """

    items: int = 0
    documents: int = 0
    rows: int = 0
    speech_sec: float = 0.0
    longest: int = 0
    longer: int = 0
    rows_longer: int = 0
    of_builder: dict[str, int] = field(default_factory=dict)

    def add(self, document: Document) -> None:
        """Counts a document that is written."""
        self.documents += 1
        self.rows += len(document.rows)
        self.speech_sec += document.speech_sec

    def named(self, name: Name) -> dict[str, float]:
        """As counts of a stage."""
        hours = round(self.speech_sec / 3600, 4)
        return {f"{name}{_DOCUMENTS}": self.documents, f"{name} rows": self.rows, f"{name} hours": hours}


class Blocks:
    """Items on their way to documents: blocks of JSON lines in a scratch folder.

    Args:
        folder: The scratch folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[Name, Any] = {}
        self._paths: dict[Name, list[Path]] = {}
        self._items: dict[Name, int] = {}
        self._recordings: dict[Name, int] = {}
        self._in_block: dict[Name, int] = {}
        self._last_key: dict[Name, str] = {}
        self._digests: dict[Name, Any] = {}

    def add(self, name: Name, item: Item, key: str) -> None:
        """Adds an item of a folder; neighbours with the same key stay in one block."""
        is_full = self._in_block.get(name, 0) >= BLOCK_ITEMS
        if name not in self._open or (is_full and key != self._last_key[name]):
            self._begin_block(name)
        self._items[name] = self._items.get(name, 0) + 1
        spoken = sum(1 for part in _parts(item) if part.get("audio_filepath"))
        self._recordings[name] = self._recordings.get(name, 0) + spoken
        self._in_block[name] += 1
        self._last_key[name] = key
        self._digests.setdefault(name, sha256()).update(_without_folders(item))
        line = json.dumps(_with_local_files(item), ensure_ascii=False)
        self._open[name].write(line.encode("utf-8", "backslashreplace") + b"\n")

    def _begin_block(self, name: Name) -> None:
        if name in self._open:
            self._open[name].close()
        paths = self._paths.setdefault(name, [])
        path = self._folder / name / f"{len(paths):05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.append(path)
        self._in_block[name] = 0
        self._open[name] = path.open("wb")

    def close(self) -> None:
        """No more items follow."""
        for file in self._open.values():
            file.close()

    def items(self, name: Name) -> int:
        """Number of items of a folder."""
        return self._items.get(name, 0)

    def recordings(self, name: Name) -> int:
        """Number of recordings that its items name."""
        return self._recordings.get(name, 0)

    def paths(self, name: Name) -> list[Path]:
        """Its blocks."""
        return self._paths.get(name, [])

    def digest(self, name: Name) -> str:
        """16 hex digits of its items, without the folders of their sound files."""
        return self._digests[name].hexdigest()[:16]


@contextmanager
def blocks_beside(storage: Storage) -> Iterator[Blocks]:
    """Blocks in a scratch folder of a step; of a stored one, in the cache."""
    if storage.is_remote:
        folder = cache_dir() / "prepare" / sha256(storage.folder.encode()).hexdigest()[:16] / "blocks"
    else:
        folder = Path(storage.path("blocks"))
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield Blocks(folder)


class SpeechCheck:
    """Recordings without sound or transcript, counted over all blocks of a kind's folders: few of all may be
    many of one block.

    Args:
        kind: Of the documents.
        blocks: The items, closed.
        max_bad_share: Share of the recordings that may be unreadable; a single one always may.
    """

    def __init__(self, kind: str, blocks: Blocks, max_bad_share: float) -> None:
        self._kind, self._max_bad_share = kind, max_bad_share
        self._total = sum(map(blocks.recordings, (kind, f"{kind}-validation")))
        self._unread, self._reasons, self._silent = 0, list[str](), list[str]()

    def add_unread(self, encoded: EncodedUtterances) -> None:
        """Counts the recordings of a block that cannot be read.

        Raises:
            UserError: if they are too many by now.
        """
        self._unread += len(encoded.unread)
        self._reasons += encoded.reasons[: 3 - len(self._reasons)]
        if self._unread > max(1, self._max_bad_share * self._total):
            raise UserError(
                f"{self._kind}: {self._unread} or more of {self._total} recordings cannot be read, expected "
                f"{self._max_bad_share:.2%} at most: {'; '.join(self._reasons)}: repair or remove them, or "
                "raise max_bad_share"
            )

    def add_silent(self, silent: Sequence[str]) -> None:
        """Counts the utterances of a block that lack a transcript.

        Raises:
            UserError: if they are too many by now.
        """
        self._silent += silent
        check_transcripts(self._kind, self._silent, self._total)


def write_folder(
    storage: Storage,
    name: Name,
    recipe: DocumentRecipe,
    blocks: Blocks,
    check: SpeechCheck,
    context: int | None = None,
    left_out: Callable[[Document], None] | None = None,
) -> FolderCounts:
    """Writes `storage/NAME`, a folder of token documents; of a stored one `meta.json` last.

    Args:
        storage: Folder of the step.
        name: Of the folder.
        recipe: How the documents are made.
        blocks: The items, closed.
        check: Counts what lacks sound or a transcript, for all folders of the kind.
        context: Rows of a training sequence; longer documents are counted.
        left_out: If given, longer documents are not written but handed to it.

    Raises:
        UserError: if no document came out, or too many utterances lack sound or a transcript.
    """
    counts = FolderCounts(items=blocks.items(name))
    builder = recipe.builder()
    with ExitStack() as stack:
        folder = Path(storage.path(name))
        if storage.is_remote:
            folder = blocks.paths(name)[0].parent / "documents"
        meta = recipe.inputs | {"sources": [blocks.digest(name)]} | builder.meta()
        writer = stack.enter_context(DocumentWriter(folder, meta))
        for path in blocks.paths(name):
            utterances = BUILDERS[recipe.kind].recordings(path)
            if utterances and recipe.tokenizer:
                encoded = encode_utterances(utterances, recipe.tokenizer, max_bad_share=1.0)
                check.add_unread(encoded)
                builder.add_speech(path, utterances, encoded)
                check.add_silent(builder.silent.get(path, []))
            for document in builder.documents(path):
                counts.longest = max(counts.longest, len(document.rows))
                if context is not None and len(document.rows) > context:
                    counts.longer += 1
                    counts.rows_longer += len(document.rows)
                    if left_out is not None:
                        left_out(document)
                        continue
                counts.add(document)
                writer.add(kind=recipe.kind, **asdict(document))
            builder.forget_speech(path)
        counts.of_builder = builder.counts()
        writer.counts |= counts.of_builder | {"skipped": builder.skipped}
    if storage.is_remote:
        _put(storage, name, folder)
    return counts


def files_of_folders(counts: Mapping[str, float]) -> list[str]:
    """The `meta.json` of each folder that a step has counted, see `FolderCounts.named`."""
    names = [key.removesuffix(_DOCUMENTS) for key in counts if key.endswith(_DOCUMENTS)]
    return [f"{name}/{META}" for name in names]


def _put(storage: Storage, name: Name, folder: Path) -> None:
    for path in sorted(folder.iterdir(), key=lambda p: (p.name == META, p.name)):
        storage.write(f"{name}/{path.name}", path.read_bytes())


def say_longer(name: Name, counts: FolderCounts, context: int | None, what: str) -> None:
    """One line about documents that are longer than the context.

    Args:
        name: Of the folder.
        counts: Its counts.
        context: Rows of a sequence.
        what: What becomes of them.
    """
    if not counts.longer:
        return
    total = counts.documents + (counts.longer if what == "left out" else 0)
    rows = counts.rows + (counts.rows_longer if what == "left out" else 0)
    print(
        f"{name}: {counts.longer} of {total} documents, {counts.rows_longer / rows:.1%} of the rows, are "
        f"longer than the context of {context} rows: {what}",
        file=sys.stderr,
    )


# --- which part, which document -----------------------------------------------------------------------------


def check_records(sources: Sequence[str], read: Callable[[Record, Path], Any]) -> None:
    """Reads all lines as the builders will: their own errors would name lines of a scratch file.

    Args:
        sources: Manifests.
        read: Reads one line; its paths do not matter.

    Raises:
        UserError: for the first line that `read` refuses.
    """
    for source in sources:
        for line in read_items(source):
            read(Record(line.item, f"{source}, line {line.number}"), Path("/"))


class Split:
    """Which documents are for validation: a share of them, by a hash of their names, the same in every run.

    Of two or more names at least one is for validation, if there is a share, and at least one for training.

    Args:
        names: All names.
        validation_share: The share, 0 to less than 1.
    """

    def __init__(self, names: Iterable[str], validation_share: float) -> None:
        self._share = validation_share
        self._least, self._most = 1.0, 0.0
        if validation_share:
            for name in names:
                place = _place(name)
                self._least, self._most = min(self._least, place), max(self._most, place)

    def is_held_out(self, name: str) -> bool:
        """Whether a document is for validation."""
        if not self._share or self._least >= self._most:
            return False
        place = _place(name)
        return place == self._least or (place < self._share and place != self._most)

    def ending(self, name: str) -> str:
        """What the name of its folder ends with: `-validation`, or nothing."""
        return "-validation" if self.is_held_out(name) else ""


def _place(name: str) -> float:
    # Names of recordings may hold bytes that are not UTF-8.
    return int.from_bytes(sha256(printable(name).encode()).digest()[:8], "big") / 2.0**64


def recording_of(item: Item) -> str:
    """Name of the recording, text or speaker that an utterance belongs to."""
    extra = {} if item.get("document") is None else {"document": item["document"]}
    path, speaker, channel = Path(item["audio_filepath"]), item.get("speaker"), item.get("channel")
    return document_key(Utterance(path, speaker=speaker, channel=channel, extra=extra))


def source_of(item: Item) -> str:
    """What decides whether an item is held out: its `text_id`, else the document or recording that it is of.

    The same for a text and for speech that `synthesize` makes of it: one that is held out as speech is not
    trained as text. Both channels of a recording are in one part.
    """
    if item.get("text_id") is not None:
        return str(item["text_id"])
    return recording_of(item | {"channel": None}) if item.get("audio_filepath") else name_of_text(item)


def name_of_text(item: Item) -> str:
    """A text's `document`, else its `id`, else a hash of it."""
    for key in ("document", "id"):
        if item.get(key) is not None:
            return str(item[key])
    return sha256(printable(str(item.get("text"))).encode()).hexdigest()[:16]


def check_share(validation_share: float) -> None:
    """Checks an option.

    Raises:
        UserError: if it is no share of documents.
    """
    if not 0 <= validation_share < 1:
        raise UserError(f"validation_share is {validation_share}, expected 0 to less than 1")


def check_context(context: int | None) -> None:
    """Checks an option.

    Raises:
        UserError: if it is no number of rows.
    """
    if context is not None and context < 2:
        raise UserError(f"context is {context}, expected 2 rows or more, or null")


def _parts(item: Item) -> Sequence[Item]:
    return [item, *(m for m in item.get("messages") or () if isinstance(m, dict))]


def _without_folders(item: Item) -> bytes:
    plain = json.loads(json.dumps(item))
    for part in _parts(plain):
        if part.get("audio_filepath"):
            part["audio_filepath"] = PurePosixPath(part["audio_filepath"]).name
    return json.dumps(plain, sort_keys=True).encode() + b"\n"


def _with_local_files(item: Item) -> Item:
    def local(part: Item) -> Item:
        path = part.get("audio_filepath")
        return part | {"audio_filepath": str(local_copy(path))} if path else part

    item = local(item)
    if isinstance(item.get("messages"), list):
        item["messages"] = [local(m) if isinstance(m, dict) else m for m in item["messages"]]
    return item
