"""Reads what the steps of a chain wrote to their folders, for the report.

STEP/stage.json  timing.json  rejected.jsonl  manifest.jsonl  NAME/meta.json + NAME/*.parquet
"""

import json
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq

from lit_moss.errors import UserError
from lit_moss.prepare.items import ManifestFolder, read_items, resolved_items, speech_sec
from lit_moss.prepare.stage import Item
from lit_moss.prepare.storage import Storage, absolute, open_read

_STATE, _TIMING, _REJECTED, _META = "stage.json", "timing.json", "rejected.jsonl", "meta.json"
_BATCH_DOCUMENTS = 4096


@dataclass(frozen=True)
class Documents:
    """A folder of token documents.

    Args:
        name: Name of the step and the folder: `interleave/interleaved`.
        kind: interleaved, unsupervised, text or sft.
        rows_D: Number of rows of each document, int64 (documents,).
        speech_sec: Seconds of speech in all documents.
        pairs: For conversations: name and modality pair of each document.
    """

    name: str
    kind: str
    rows_D: np.ndarray
    speech_sec: float
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass
class StepFiles:
    """A finished step.

    Args:
        name: Name of the step.
        stage: Name of its stage; "" if a source is a plain manifest.
        manifest: Path of its manifest.
        sources: Manifests that it read.
        counts: Content of `stage.json`: items_in, items_out, speech_sec_in, speech_sec_out, rejected, counts.
        seconds: Computing time in seconds of the last call that ran items; None if unknown.
        documents: Folders of documents that it wrote.
    """

    name: str
    stage: str
    manifest: str
    sources: tuple[str, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    documents: tuple[Documents, ...] = ()

    @property
    def folder(self) -> str:
        """Folder of the step."""
        return posixpath.dirname(self.manifest)

    def items(self) -> Iterator[Item]:
        """Items of its manifest, with absolute paths."""
        return resolved_items([self.manifest])

    def rejections(self) -> Iterator[dict[str, Any]]:
        """Entries of its `rejected.jsonl`; paths of their items are absolute."""
        storage = Storage(self.folder)
        if self.stage and storage.exists(_REJECTED):
            path = storage.path(_REJECTED)
            folder = ManifestFolder(storage, self.folder)
            for line in read_items(path):
                yield line.item | {"item": folder.resolved(line.item["item"], path, line.number)}


def read_steps(manifests: Sequence[str]) -> list[StepFiles]:
    """Reads the steps with the given manifests, in this order.

    Raises:
        UserError: if a manifest or a file of a step cannot be read.
    """
    return [_read_step(manifest) for manifest in manifests]


def _read_step(manifest: str) -> StepFiles:
    storage = Storage(posixpath.dirname(manifest) or ".")
    if not storage.exists(_STATE):
        items_out, seconds = 0, 0.0
        for line in read_items(manifest):
            items_out += 1
            seconds += speech_sec(line.item)
        counts = {"items_out": items_out, "speech_sec_out": seconds}
        return StepFiles(posixpath.basename(manifest), "", manifest, counts=counts)
    try:
        state = json.loads(storage.read(_STATE))
        sources = tuple(absolute(source, storage.folder) for source in state.get("sources", ()))
        timing = json.loads(storage.read(_TIMING)) if storage.exists(_TIMING) else {}
        documents = tuple(_documents(storage, state["step"]))
        step = StepFiles(state["step"], state["stage"], manifest, sources, state["counts"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{storage.folder} holds a damaged step ({error!r}): run the step again") from error
    step.seconds, step.documents = timing.get("seconds"), documents
    return step


def _documents(storage: Storage, step: str) -> Iterator[Documents]:
    system, inner = fsspec.url_to_fs(storage.folder)
    # No glob pattern: the folder's own name may contain brackets.
    for path in sorted(system.ls(inner, detail=False)):
        folder = posixpath.basename(path.rstrip("/"))
        if not storage.exists(f"{folder}/{_META}"):
            continue
        meta = json.loads(storage.read(f"{folder}/{_META}"))
        yield _read_documents(storage, folder, meta, f"{step}/{folder}")


def _read_documents(storage: Storage, folder: str, meta: dict[str, Any], name: str) -> Documents:
    """Reads lengths, seconds and pairs in batches; rows are not kept."""
    is_sft = meta["kind"] == "sft"
    columns = ["rows", "speech_sec", *(["id"] if is_sft else [])]
    rows: list[np.ndarray] = []
    pairs: list[tuple[str, str]] = []
    seconds = 0.0
    for shard in meta["shards"]:
        with open_read(storage.path(f"{folder}/{shard['name']}")) as file:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_DOCUMENTS, columns=columns):
                rows.append(np.asarray(batch.column("rows").value_lengths(), dtype=np.int64))
                seconds += float(np.asarray(batch.column("speech_sec")).sum())
                if is_sft:
                    for document in batch.column("id").to_pylist():
                        conversation, _, pair = document.rpartition("/")
                        pairs.append((conversation, pair))
    lengths_D = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    return Documents(name, meta["kind"], lengths_D, seconds, tuple(pairs))


# --- counting -----------------------------------------------------------------------------------------------


def final_steps(steps: Sequence[StepFiles]) -> list[StepFiles]:
    """Steps from whose items documents were made; without documents, the last step that has items."""
    read_for_documents = {source for step in steps if step.documents for source in step.sources}
    final = [step for step in steps if step.manifest in read_for_documents]
    if not final:
        final = [step for step in steps if step.counts.get("items_out")][-1:]
    return final


def real_or_synthetic(item: Item) -> str:
    """`synthetic` for speech of a synthetic voice, `real` for other speech, `text` for items without audio.

    Synthesized utterances, and messages of synthesized conversations, contain the spoken text in `spoken`.
    """
    parts = [item, *(m for m in item.get("messages") or () if isinstance(m, dict))]
    sounds = [part for part in parts if part.get("audio_filepath")]
    if not sounds:
        return "text"
    return "synthetic" if any(part.get("spoken") for part in sounds) else "real"


@dataclass
class Tally:
    """Number of items and seconds by keys."""

    items: Counter[tuple[str, ...]] = field(default_factory=Counter)
    seconds: defaultdict[tuple[str, ...], float] = field(default_factory=lambda: defaultdict(float))

    def add(self, key: tuple[str, ...], seconds: float) -> None:
        """Counts one item."""
        self.items[key] += 1
        self.seconds[key] += seconds


def source_of(item: Item) -> str:
    """Source stated by an item."""
    return str(item.get("source") or "not stated")


def licence_of(item: Item) -> str:
    """Licence stated by an item."""
    return str(item.get("licence") or item.get("license") or "not stated")
