"""Token documents on disk: Parquet shards of rows, and a `meta.json` with fingerprints of what made them.

Columns: `id`, `rows` list<int32>, `loss_mask` list<bool> (empty: every row counts), `kind`, `lang`,
`speech_sec`. With the option `speech_text` also the text of the speech, a list of `first` row, `stop` row
(exclusive) and text `ids`: one entry per word if word times are known, otherwise per utterance or chunk. The
schema of every shard also contains the fingerprints, so that a single shard can be identified; `meta.json`
adds counts and the sha256 of each shard. Training reads the documents from the memory-mapped Arrow cache of
the `datasets` library: in random order, without decoding.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.utilities import rank_zero_warn

from lit_moss.assets import sha256_of
from lit_moss.data.arrow import arrow_copy, damaged_shards, schema_of
from lit_moss.errors import UserError
from lit_moss.files import scratch_beside
from lit_moss.llm.rows import RowFormat

META = "meta.json"
KINDS = ("interleaved", "unsupervised", "text", "sft", "transcripts")
SpokenText = tuple[int, int, Sequence[int]]  # first row of codes, row after the last code, text ids


class DocumentWriter:
    """Writes a folder of token documents atomically.

    Use it as a context manager. If an exception occurs, nothing is left on disk.

    Args:
        folder: The folder to create; it must not exist.
        meta: Origin of the documents: `kind`, `options`, `text_tokenizer` and `speech_tokenizer`
            (fingerprints; None without a speech tokenizer), and `format` (a RowFormat's `to_dict`).
        shard_rows: Number of rows after which a shard is closed.

    Attributes:
        documents: Number of documents added so far.
        rows: Number of rows of these documents.
        counts: Additional counts for `meta.json`, which are not stored in the shards.
    """

    def __init__(self, folder: str | Path, meta: dict[str, Any], shard_rows: int = 2**22) -> None:
        self.folder, self.meta, self.shard_rows = Path(folder), dict(meta), shard_rows
        row_format = RowFormat(**self.meta["format"])
        self._schema = schema_of(has_speech_text(self.meta))
        self._vocab_size = row_format.text_vocab_size + row_format.audio_vocab_size
        self._scratch = ExitStack()
        self._columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        self._shards: list[dict[str, Any]] = []
        self._digest = hashlib.sha256()
        self._open_rows = self.documents = self.rows = 0
        self.counts: dict[str, Any] = {}

    def __enter__(self) -> "DocumentWriter":
        if self.folder.exists():
            raise UserError(
                f"{self.folder} exists: documents are never rewritten, give another folder or remove it"
            )
        self._partial = self._scratch.enter_context(scratch_beside(self.folder))
        self._partial.mkdir()
        return self

    def add(
        self,
        id: str,
        rows: Sequence[int],
        loss_mask: Sequence[bool] | None = None,
        kind: str = "interleaved",
        lang: str | None = None,
        speech_sec: float = 0.0,
        speech_text: Sequence[SpokenText] | None = None,
    ) -> None:
        """Adds one document of at least two rows (a single row has nothing to predict).

        Args:
            id: Name of the document.
            rows: Text ids, or `text_vocab_size` + audio ids.
            loss_mask: True where a row counts as a target; None: all rows.
            kind: One of `KINDS`.
            lang: Language, e.g. "en".
            speech_sec: Seconds of speech in the document.
            speech_text: Text of its speech, in order; written only if the folder has the option.

        Raises:
            ValueError: if it has fewer rows, a row is outside the vocabularies, or the mask has another
                length.
        """
        rows_L = np.asarray(rows, dtype=np.int64)
        if len(rows_L) < 2 or rows_L.min() < 0 or rows_L.max() >= self._vocab_size or kind not in KINDS:
            span = f" from {rows_L.min()} to {rows_L.max()}" if len(rows_L) else ""
            raise ValueError(
                f"document {id} of kind {kind}: {len(rows_L)} rows{span}, expected 2 or more from 0 to "
                f"{self._vocab_size - 1}, and a kind of {', '.join(KINDS)}"
            )
        mask_L = np.asarray([] if loss_mask is None else loss_mask, dtype=bool)
        if loss_mask is not None and len(mask_L) != len(rows_L):
            raise ValueError(f"document {id}: {len(rows_L)} rows, a loss mask of {len(mask_L)}")
        values = {"id": id, "rows": rows_L.astype(np.int32), "loss_mask": mask_L, "kind": kind, "lang": lang,
                  "speech_sec": speech_sec}  # fmt: skip
        said: list[dict[str, Any]] = []
        if "speech_text" in self._columns:
            for first, stop, ids in speech_text or ():
                if not 0 <= first <= stop <= len(rows_L):
                    raise ValueError(f"document {id}: text of rows {first} to {stop} of {len(rows_L)}")
                said.append({"first": first, "stop": stop, "ids": list(ids)})
            values["speech_text"] = said
        for name, column in self._columns.items():
            column.append(values[name])
        self._digest.update(f"{id}\0{len(rows_L)}\0{len(mask_L)}\0".encode())
        self._digest.update(rows_L.astype("<i4").tobytes())
        self._digest.update(mask_L.tobytes())
        if said:
            self._digest.update(json.dumps(said).encode())
        self._open_rows += len(rows_L)
        self.documents += 1
        self.rows += len(rows_L)
        if self._open_rows >= self.shard_rows:
            self._close_shard()

    def _close_shard(self) -> None:
        if not self._open_rows:
            return
        schema = self._schema.with_metadata({"lit_moss": json.dumps(self.meta)})
        path = self._partial / f"{len(self._shards):05d}.parquet"
        pq.write_table(pa.table(self._columns, schema=schema), path, compression="zstd")
        self._shards.append(
            {"name": path.name, "documents": len(self._columns["id"]), "sha256": sha256_of(path)}
        )
        self._columns = {name: [] for name in self._schema.names}
        self._open_rows = 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._scratch:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        self._close_shard()
        if not self.documents:
            raise UserError(f"{self.folder}: no document came out of the sources")
        # Hash of the content instead of the files, which differ between versions of Parquet's writer.
        counts = {"documents": self.documents, "rows": self.rows, "content": self._digest.hexdigest()}
        meta = self.meta | self.counts | counts | {"shards": self._shards}
        (self._partial / META).write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
        try:
            self._partial.rename(self.folder)
        except OSError as error:
            if not (self.folder / META).is_file():
                raise
            if json.loads((self.folder / META).read_text()).get("content") != counts["content"]:
                raise UserError(
                    f"{self.folder} was made meanwhile, with other documents: give another folder"
                ) from error


class DocumentSet:
    """A folder of token documents with random access.

    The sha256 of every shard is checked first, once per machine (see `arrow`). Damaged shards are skipped and
    reported by name.

    Args:
        folder: The folder.
        max_bad_share: Fraction of damaged documents above which the folder is rejected.

    Attributes:
        meta: Origin of the documents, and counts.
        format: Row format of the documents.
        lengths: Number of rows of each document, int64 (documents,).
        speech_sec: Seconds of speech in all documents.
        has_speech_text: Whether the documents carry the text of their speech.
        skipped: Name of each damaged shard -> its number of documents, and why it is damaged.
        skipped_documents: Number of documents in damaged shards.
    """

    def __init__(self, folder: str | Path, max_bad_share: float = 0.01) -> None:
        self.folder = Path(folder)
        try:
            self.meta = json.loads((self.folder / META).read_text(encoding="utf-8"))
            self.format = RowFormat(**self.meta["format"])
            shards = [(s["name"], s["documents"], s["sha256"]) for s in self.meta["shards"]]
            total, self._content = self.meta["documents"], self.meta["content"]
        except OSError as error:
            raise UserError(
                f"{folder} holds no token documents (no {META}): make them with `prepare documents`"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.folder / META} is damaged ({error!r}): make the documents again"
            ) from error
        self.skipped: dict[str, str] = {}
        self.skipped_documents = 0
        damaged = damaged_shards(self.folder, shards)
        good = [shard for shard in shards if shard[0] not in damaged]
        for name, documents, _ in shards:
            if name in damaged:
                self.skipped[name] = f"{documents} documents, {damaged[name]}"
                self.skipped_documents += documents
        if self.skipped:
            names = "; ".join(f"{name}: {reason}" for name, reason in list(self.skipped.items())[:5])
            text = f"{folder}: {self.skipped_documents} of {total} documents cannot be read ({names})"
            if not good or self.skipped_documents > max_bad_share * total:
                raise UserError(
                    f"{text}, more than {max_bad_share:.0%}: make them again, or raise data.max_bad_share"
                )
            rank_zero_warn(f"{text}: left out")
        self.has_speech_text = has_speech_text(self.meta)
        copy = arrow_copy(self.folder, good, self.has_speech_text)
        self._table, self.lengths, self.speech_sec = copy.table, copy.lengths, copy.speech_sec

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, i: int) -> np.ndarray:
        """Rows of document i, int32 (rows,); a read-only view of the memory-mapped file."""
        return self._table[i]["rows"].chunk(0).flatten().to_numpy()

    def loss_mask(self, i: int) -> np.ndarray:
        """Loss mask of document i, bool (rows,), True where a row counts as a target."""
        mask = self._table[i]["loss_mask"].chunk(0).flatten().to_numpy(zero_copy_only=False)
        return mask.astype(bool) if len(mask) else np.ones(int(self.lengths[i]), dtype=bool)

    def speech_text(self, i: int) -> list[SpokenText]:
        """Text of the speech of document i, in order; [] if unknown."""
        if not self.has_speech_text:
            return []
        entries = self._table[i]["speech_text"][0].as_py() or []
        return [(entry["first"], entry["stop"], entry["ids"]) for entry in entries]

    def spoken_ids(self) -> np.ndarray:
        """Text ids that occur in the text of the speech, sorted, int64 (ids,)."""
        if not self.has_speech_text:
            return np.zeros(0, dtype=np.int64)
        chunks = self._table.data.column("speech_text").chunks
        found = [np.unique(chunk.flatten().field("ids").flatten().to_numpy()) for chunk in chunks]
        return np.unique(np.concatenate(found)).astype(np.int64)

    def count_targets(self, document: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Number of targets of pieces of documents, int64 (pieces,).

        Counts the loss mask from row start + 1 to stop, because the first row of a piece is never a target.
        Each shard's masks are read once, for any number and order of pieces.

        Args:
            document: Document of each piece, int64 (pieces,).
            start: First row of each piece, int64 (pieces,).
            stop: One past the last row of each piece, int64 (pieces,).
        """
        targets = stop - start - 1
        order = np.argsort(document, kind="stable")
        ordered, first = document[order], 0
        for chunk in self._table.data.column("loss_mask").chunks:
            lengths = np.asarray(chunk.value_lengths(), dtype=np.int64)
            in_chunk = order[slice(*np.searchsorted(ordered, [first, first + len(lengths)]))]
            in_chunk = in_chunk[lengths[document[in_chunk] - first] > 0]  # an empty mask counts every row
            if len(in_chunk):
                flags = chunk.flatten().to_numpy(zero_copy_only=False)
                count_before = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
                offset = (np.cumsum(lengths) - lengths)[document[in_chunk] - first]
                begin, end = offset + start[in_chunk] + 1, offset + stop[in_chunk]
                targets[in_chunk] = count_before[end] - count_before[begin]
            first += len(lengths)
        return targets

    def id(self, i: int) -> str:
        """Name of document i."""
        return self._table[i]["id"][0].as_py()

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the readable documents and the meaning of their rows, whatever the path."""
        makers = [str(self.meta.get(key)) for key in ("text_tokenizer", "speech_tokenizer")]
        text = json.dumps([self._content, self.format.fingerprint, *makers, *sorted(self.skipped)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def has_speech_text(meta: dict[str, Any]) -> bool:
    """Whether documents with this `meta` contain the text of their speech."""
    return bool((meta.get("options") or {}).get("speech_text"))


def read_documents(folder: str | Path, max_bad_share: float = 0.01) -> DocumentSet:
    """Opens a folder of token documents.

    Raises:
        UserError: if it contains no documents, or more than `max_bad_share` of them are damaged.
    """
    return DocumentSet(folder, max_bad_share)
