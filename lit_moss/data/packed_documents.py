"""A folder of token documents and its packs: packed once per machine, and collated into batches.

    documents   [A A A A] [B B] [C C C C C] …
    pack        A A A A C C C C C B B .        one sequence of `context` rows; `.` is filler
    ids         0 0 0 0 1 1 1 1 1 2 2 -1       attention and positions restart at each new number

Shapes: B sequences, L = context rows.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from lit_moss.assets import cache_dir
from lit_moss.data.batches import SpeechText, TokenBatch
from lit_moss.data.documents import DocumentSet, SpokenText, read_documents
from lit_moss.data.once import cache_lock
from lit_moss.data.packing import VERSION, Packs, pack
from lit_moss.errors import UserError
from lit_moss.llm.rows import RowFormat

Piece = tuple[str, np.ndarray, np.ndarray, list[SpokenText]]  # name, rows, loss mask, text of the speech


class PackedDocuments:
    """A folder of documents with its packs, which are stored in the same folder.

    Args:
        folder: Folder of token documents.
        context: Number of rows of a sequence.
        max_bad_share: Fraction of damaged documents above which the folder is rejected.
        min_fill: Fill rate below which documents are cut, see `pack`.
        max_left_out_share: Maximum fraction of rows in documents that are left out because they are longer
            than the context.

    Attributes:
        documents: The documents.
        packs: Assignment of documents to sequences.
        left_out: Number of documents that are in no pack.

    Raises:
        UserError: if the folder contains no documents, too many are damaged or longer than the context, or
            there is no pack.
    """

    def __init__(
        self,
        folder: Path,
        context: int,
        max_bad_share: float = 0.01,
        min_fill: float = 0.0,
        max_left_out_share: float = 1.0,
    ) -> None:
        self.folder, self._max_left_out_share = folder, max_left_out_share
        self.documents: DocumentSet = read_documents(folder, max_bad_share)
        file_name = f"{context}-{min_fill:g}-{self.documents.fingerprint}-v{VERSION}.npz"
        self.packs = _stored_packs(folder, file_name) or self._make_packs(file_name, context, min_fill)
        self.left_out = len(self.packs.left_out)
        self._report_left_out(context)
        self._report_cut(context)
        self._report_without_word_times()

    def _make_packs(self, file_name: str, context: int, min_fill: float) -> Packs:
        with cache_lock(f"{self.folder.absolute()} {file_name}"):
            packs = _stored_packs(self.folder, file_name)  # written by the process that held the lock
            if packs is None:
                packs = self._pack(context, min_fill)
                for parent in (self.folder, cache_dir()):  # the folder may be read-only
                    with contextlib.suppress(OSError):
                        packs.save(parent / "packs" / file_name)
                        break
            return packs

    def _pack(self, context: int, min_fill: float) -> Packs:
        """Packs the documents. Conversations and transcripts are cut only if a minimum fill rate is set.

        An answer without its question teaches little, and a question without its answer nothing.
        """
        whole = self.documents.meta["kind"] in ("sft", "transcripts") and not min_fill
        return pack(self.documents.lengths, context, min_fill, self.documents.count_targets, whole)

    def _report_left_out(self, context: int) -> None:
        documents, packs = self.documents, self.packs
        if not self.left_out:
            return
        missing = packs.left_out
        too_long = missing[documents.lengths[missing] > context]
        longer = len(too_long)
        names = ", ".join(documents.id(i) for i in missing[:5].tolist())
        text = (
            f"{self.folder.name}: {self.left_out} of {len(documents)} documents of kind "
            f"{documents.meta['kind']}, {self._share_of_rows(missing)} of the rows, left out, {longer} of "
            f"them longer than the context of {context} rows "
            f"(the longest has {int(documents.lengths[missing].max())}), {self.left_out - longer} without a "
            f"target: {names}{', …' if self.left_out > 5 else ''}"
        )
        if not len(packs):
            raise UserError(f"{text}; nothing is left: raise data.context, or give shorter documents")
        if int(documents.lengths[too_long].sum()) > self._max_left_out_share * int(documents.lengths.sum()):
            raise UserError(
                f"{text}; expected {self._max_left_out_share:.1%} of the rows in documents longer than the "
                f"context at most: set data.context {int(documents.lengths.max())}, which holds the longest, "
                "or raise data.max_left_out_share"
            )
        rank_zero_info(text)

    def _report_cut(self, context: int) -> None:
        lengths, kind = self.documents.lengths, self.documents.meta["kind"]
        longer = np.flatnonzero(lengths > context)
        longer = longer[~np.isin(longer, self.packs.left_out)]
        if len(longer):
            rank_zero_info(
                f"{self.folder.name}: {len(longer)} of {len(lengths)} documents of kind {kind}, "
                f"{self._share_of_rows(longer)} of the rows, are longer than the context of {context} rows "
                f"(the longest has {int(lengths.max())}): cut into pieces"
            )

    def _report_without_word_times(self) -> None:
        if missing := self.documents.meta.get("without_word_times"):
            rank_zero_info(
                f"{self.folder.name}: {missing} utterances have no word times and are one chunk each, "
                "whatever their length: prepare align adds the times"
            )

    def _share_of_rows(self, documents: np.ndarray) -> str:
        lengths = self.documents.lengths
        return f"{int(lengths[documents].sum()) / int(lengths.sum()):.1%}"

    @property
    def fingerprint(self) -> str:
        """Fingerprint of documents and packs."""
        return f"{self.documents.fingerprint}-{self.packs.fingerprint}"


def _stored_packs(folder: Path, file_name: str) -> Packs | None:
    stored = (Packs.load(parent / "packs" / file_name) for parent in (folder, cache_dir()))
    return next((packs for packs in stored if packs is not None), None)


def check_same_tokenizers(sources: Sequence[PackedDocuments]) -> None:
    """Checks that rows have the same meaning in all documents.

    Text documents made without a speech tokenizer are compatible with any, because they contain no audio ids.

    Raises:
        UserError: if text tokenizers, speech tokenizers or row formats differ.
    """
    for key in ("text_tokenizer", "speech_tokenizer", "format"):
        folder_by_value: dict[str, str] = {}
        for source in sources:
            meta = source.documents.meta
            value = (
                source.documents.format.fingerprint
                if key == "format" and meta.get("speech_tokenizer")
                else meta.get(key)
            )
            if isinstance(value, str):
                folder_by_value.setdefault(value, str(source.folder))
        if len(folder_by_value) > 1:
            (value, folder), (other_value, other_folder), *_ = folder_by_value.items()
            raise UserError(
                f"documents of different {key.replace('_', ' ')}s: {folder} has {value}, {other_folder} has "
                f"{other_value}; make them with the same backbone and speech tokenizer"
            )


class PackSet(Dataset):
    """Packs by (source, pack); each is a list of its pieces in order.

    Args:
        sources: Folders of documents with their packs.
        speech_text: Also read the text of the speech.
    """

    def __init__(self, sources: Sequence[PackedDocuments], speech_text: bool = False) -> None:
        self.sources, self.speech_text = list(sources), speech_text

    def __getitem__(self, key: tuple[int, int]) -> list[Piece]:
        source = self.sources[key[0]]
        documents, pieces = source.documents, []
        for document, start, stop in source.packs.pieces(key[1]):
            name = documents.id(document) + (f"+{start}" if start else "")
            rows, mask = documents.rows(document), documents.loss_mask(document)
            said = documents.speech_text(document) if self.speech_text else []
            # Spans divided by a cut are dropped: which half holds which text is unknown.
            said = [(a - start, b - start, ids) for a, b, ids in said if start <= a and b <= stop]
            pieces.append((name, rows[start:stop], mask[start:stop], said))
        return pieces


class CollatePacks:
    """Collates packs into a `TokenBatch`; an empty list of packs becomes one sequence of filler.

    Args:
        context: Number of rows of a sequence.
        row_format: Row format: ids of text and speech.
    """

    def __init__(self, context: int, row_format: RowFormat) -> None:
        self.context, self.row_format = context, row_format

    def __call__(self, packs: list[list[Piece]]) -> TokenBatch:
        B = max(1, len(packs))
        rows_BL = np.full((B, self.context), self.row_format.end_id or 0, dtype=np.int64)
        ids_BL = np.full((B, self.context), -1, dtype=np.int32)
        mask_BL = np.zeros((B, self.context), dtype=bool)
        names: list[str] = []
        lengths: list[int] = []
        said: list[SpeechText] = []
        for b, pieces in enumerate(packs):
            start = 0
            for number, (name, rows, mask, texts) in enumerate(pieces):
                span = slice(start, start + len(rows))
                rows_BL[b, span], ids_BL[b, span], mask_BL[b, span] = rows, number, mask
                mask_BL[b, start] = False  # no row of the document precedes it
                said += _joined(b, start, texts)
                names.append(name)
                lengths.append(len(rows))
                start += len(rows)
        speech_BL = rows_BL >= self.row_format.text_vocab_size
        speech_rows = int((speech_BL & (ids_BL >= 0)).sum())
        targets = int((mask_BL & ~speech_BL).sum()), int((mask_BL & speech_BL).sum())
        tensors = (torch.from_numpy(rows_BL), torch.from_numpy(ids_BL), torch.from_numpy(mask_BL))
        return TokenBatch(*tensors, names, speech_rows, lengths, *targets, said)


def _joined(sequence: int, start: int, texts: Sequence[SpokenText]) -> list[SpeechText]:
    """Texts of a document starting at row `start`; merged over adjacent codes, also across utterances."""
    joined: list[SpeechText] = []
    for first, stop, ids in texts:
        word = (stop - first, len(ids))
        if joined and joined[-1].stop == start + first:
            last = joined[-1]
            joined[-1] = SpeechText(
                sequence, last.first, start + stop, [*last.ids, *ids], [*last.words, word]
            )
        else:
            joined.append(SpeechText(sequence, start + first, start + stop, list(ids), [word]))
    return joined
