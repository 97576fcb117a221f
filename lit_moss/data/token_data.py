"""Token documents -> packed batches for the language model (the kinds of data are in `kinds.py`).

    documents   [A A A A] [B B] [C C C C C] …
    pack        A A A A C C C C C B B .        one sequence of `context` rows; `.` is filler
    ids         0 0 0 0 1 1 1 1 1 2 2 -1       attention and positions start anew with each number

Which pack comes when is a function of the seed and the batch's number (see `packing`), not a state.
Shapes: B sequences, L = context rows.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_moss.assets import cache_dir
from lit_moss.audio import rates
from lit_moss.data.arrow import locked
from lit_moss.data.documents import META, DocumentSet, read_documents
from lit_moss.data.order import OrderedBatchSampler
from lit_moss.data.packing import VERSION, PackOrder, Packs, pack
from lit_moss.errors import UserError
from lit_moss.llm.rows import RowFormat


@dataclass
class TokenBatch:
    """Packed sequences.

    Args:
        rows_BL: Rows, int64 (B, L).
        document_ids_BL: Number of the document in its sequence, -1 for filler; int32 (B, L).
        loss_mask_BL: True where the row counts as a target; bool (B, L). A document's first row never does.
        ids: Names of the documents, sequence by sequence; `name+n` is the piece of a long one from row n on.
        speech_rows: Codes and eosps among the rows.
        lengths: Rows of every document; counted if not given. Plain numbers: asking a GPU would wait for it.
        text_targets: Rows of text that count as targets, a plain number likewise; None where nobody counted.
        speech_targets: The same of speech.
    """

    rows_BL: Tensor
    document_ids_BL: Tensor
    loss_mask_BL: Tensor
    ids: list[str]
    speech_rows: int
    lengths: list[int] = field(default_factory=list)
    text_targets: int | None = None
    speech_targets: int | None = None

    def __post_init__(self) -> None:
        if not self.lengths:
            for ids_L in self.document_ids_BL:
                self.lengths += torch.bincount(ids_L[ids_L >= 0].long()).tolist()

    def __len__(self) -> int:
        return len(self.rows_BL)

    @property
    def real_rows(self) -> int:
        """Rows that are no filler."""
        return sum(self.lengths)

    @property
    def audio_sec(self) -> float:
        """Seconds of speech."""
        return self.speech_rows * rates.SECONDS_PER_CODE

    @property
    def skipped(self) -> list[str]:
        """Nothing: damaged documents are found before a run begins, see `TokenDataModule.skipped`."""
        return []

    def document_lengths(self) -> list[int]:
        """Rows of every document in the batch."""
        return self.lengths


class TokenDataModule(LightningDataModule):
    """Packed token documents of one kind.

    An entry of `train` or `validation` is a folder of token documents (see `prepare documents`), or what they
    are made of: a manifest, a text file, `embedded:everyday-en`. Those are made into documents once, and kept
    in the cache.

    Args:
        train: What to learn from.
        validation: What to validate on.
        backbone: Whose tokenizer made, or makes, the text rows: folder, Hugging Face id,
            `embedded:smollm2-135m`.
        speech_tokenizer: Speech tokenizer that makes the codes: checkpoint, run folder, folder,
            `embedded:whisper-tiny-kmeans`.
        log_mel: Features of the speech tokenizer, `causal` or `whisper`; None takes what it states, see
            `SpeechTokenizer.from_pretrained`.
        heldout: Manifests whose sentences serve as held-out items for perplexity and cloze, in text and
            speech; `validation`'s, if not given.
        heldout_items: Most items of each modality; 0 makes none.
        context: Rows of a sequence.
        batch_size: Sequences of a micro-batch and rank.
        validation_batch_size: The same in validation.
        seed: Seed of the order.
        workers: Loader processes per rank; 0 loads in the training process.
        min_fill: Share of real rows in training sequences that is reached by cutting documents where packing
            whole ones does not; 0 cuts only those longer than the context, as validation does always.
        max_bad_share: Share of unreadable documents above which a run does not start.
        first_batch: Micro-batch of the order to begin with, counted over all ranks: a second stage goes on
            where the first one, of the same data and seed, has stopped.
    """

    kind: str = "interleaved"

    def __init__(
        self,
        train: list[str] | None = None,
        validation: list[str] | None = None,
        backbone: str = "embedded:smollm2-135m",
        speech_tokenizer: str | None = None,
        log_mel: Literal["causal", "whisper"] | None = None,
        heldout: list[str] | None = None,
        heldout_items: int = 64,
        context: int = 2048,
        batch_size: int = 1,
        validation_batch_size: int = 1,
        seed: int = 1,
        workers: int = 0,
        min_fill: float = 0.97,
        max_bad_share: float = 0.01,
        first_batch: int = 0,
    ) -> None:
        super().__init__()
        if min(context, batch_size, validation_batch_size) < 1 or context < 2:
            raise UserError(
                f"data.context {context}, batch_size {batch_size}, validation_batch_size "
                f"{validation_batch_size}: expected 2 rows and 1 sequence at least"
            )
        self.train, self.validation = list(train or []), list(validation or [])
        self.backbone, self.speech_tokenizer, self.log_mel = backbone, speech_tokenizer, log_mel
        self.heldout = list(heldout if heldout is not None else self.validation)
        self.heldout_items = heldout_items
        self.context, self.batch_size, self.validation_batch_size = context, batch_size, validation_batch_size
        if not 0 <= min_fill <= 1:
            raise UserError(f"data.min_fill is {min_fill}, expected 0 to 1")
        self.seed, self.workers, self.max_bad_share, self.min_fill = seed, workers, max_bad_share, min_fill
        if first_batch < 0:
            raise UserError(f"data.first_batch is {first_batch}, expected 0 or more")
        self.next_batch = first_batch  # micro-batches consumed by all ranks together; part of the checkpoint
        self.skipped: dict[str, str] = {}
        self.left_out = 0  # documents longer than the context, or without a target
        self.sources: list[Source] = []
        self.epochs: list[float] = []
        self.order: PackOrder | None = None
        self._validation: list[Source] = []
        self._folders: dict[tuple[str, str], Path] = {}  # documents made or found, by entry and part

    def options(self) -> dict[str, Any]:
        """What the documents of this kind are made by, beside sources, backbone and speech tokenizer."""
        return {}

    # --- set-up ---------------------------------------------------------------------------------------------

    def documents(self, entry: str, part: Literal["train", "validation"]) -> Path:
        """Folder of an entry's token documents, made now if need be, by one rank of a node."""
        if (Path(entry) / META).is_file():
            return Path(entry)
        if Path(entry).is_dir():
            raise UserError(
                f"{entry} is a folder without {META}: expected token documents, a manifest or a text file"
            )
        if (entry, part) not in self._folders:
            from lit_moss.data.make_documents import make_documents

            inputs = (self.kind, [entry], part, self.backbone, self.speech_tokenizer)
            with locked(f"documents {inputs} {self.options()}"):
                self._folders[entry, part] = make_documents(
                    *inputs, options=self.options(), **self._features()
                )
        return self._folders[entry, part]

    def prepare_data(self) -> None:
        for entry in self.train:
            self.documents(entry, "train")
        for entry in self.validation:
            self.documents(entry, "validation")
        self.cloze_items()

    def load(self) -> None:
        """Reads and packs the sources; what `setup` does for one kind and a mixture does for each of its
        parts."""
        if not self.train:
            raise UserError(
                f"data.train of {type(self).__name__} is empty: expected folders of token documents, or what "
                "they are made of"
            )
        self.sources = [
            Source(self.documents(e, "train"), self.context, self.max_bad_share, self.min_fill)
            for e in self.train
        ]
        self.epochs = [1.0] * len(self.sources)

    def setup(self, stage: str) -> None:
        if not self._validation:
            self._validation = [
                Source(self.documents(e, "validation"), self.context, self.max_bad_share)
                for e in self.validation
            ]
        if stage == "fit" and self.order is None:
            self.load()
            self.order = PackOrder([len(s.packs) for s in self.sources], self.epochs, self.seed)
            self._tell()
        for source in self.sources + self._validation:
            self.skipped |= {f"{source.folder / k}": f"{k}: {v}" for k, v in source.documents.skipped.items()}
        self.left_out = sum(s.left_out for s in self.sources + self._validation)
        _check_alike(self.sources + self._validation)

    @rank_zero_only
    def _tell(self) -> None:
        assert self.order is not None
        for source, share in zip(self.sources, self.order.shares, strict=True):
            documents, packs = source.documents, source.packs
            rank_zero_info(
                f"train: {source.folder.name}: {len(documents)} documents of kind {documents.meta['kind']}, "
                f"{int(documents.lengths.sum())} rows, {documents.speech_sec / 3600:.2f} h of speech, "
                f"{len(packs)} packs {packs.fill_rate:.1%} full, {share:.4g} of them a round"
            )
        rank_zero_info(
            f"train: {self.order.packs_per_round / self.batch_size:.1f} batches a round, "
            f"{self.fill_rate:.1%} full, of {self.batch_size * self.context} rows (per rank and micro-batch)"
        )

    @property
    def fill_rate(self) -> float:
        """Share of training rows that are no filler."""
        assert self.order is not None
        filled = sum(s.packs.fill_rate * n for s, n in zip(self.sources, self.order.shares, strict=True))
        return filled / self.order.packs_per_round

    @property
    def format(self) -> RowFormat:
        """Ids of the documents' rows."""
        found = self.sources + self._validation
        found = [
            s for s in found if s.documents.meta.get("speech_tokenizer")
        ] or found  # text alone may not know the speech tokenizer
        if not found:
            raise UserError("data.train and data.validation are empty: expected token documents or manifests")
        return found[0].documents.format

    @property
    def utterances(self) -> int:
        """Documents of training and validation together."""
        return sum(len(s.documents) for s in self.sources + self._validation)

    def fingerprints(self) -> dict[str, str]:
        """What a run has seen, for its record and for a resume."""
        found = {}
        both = self.sources + self._validation
        if both:
            found["format"] = self.format.fingerprint
            for key in ("text_tokenizer", "speech_tokenizer"):
                found[key] = next(
                    (str(m[key]) for m in (s.documents.meta for s in both) if m.get(key)), "none"
                )
        if self.sources:
            found["data"] = "+".join(s.fingerprint for s in self.sources)
        if self._validation:
            found["validation"] = "+".join(s.fingerprint for s in self._validation)
        if self.order is not None:
            found["order"] = f"{self.order.fingerprint}-{self.context}x{self.batch_size}"
        return found

    def cloze_items(self) -> list[Any]:
        """Held-out items of both modalities, made once."""
        if not self.heldout or not self.heldout_items:
            return []
        from lit_moss.data.make_documents import make_cloze

        manifests = [e for e in self.heldout if not (Path(e) / META).is_file()]  # rows have no sentences
        if not manifests:
            return []
        inputs = (manifests, "validation", self.backbone, self.speech_tokenizer, self.heldout_items)
        with locked(f"cloze {inputs}"):
            return make_cloze(*inputs, **self._features())

    def targets_of(self, batches: range) -> int:
        """Targets of these micro-batches of the order, counted over all ranks; without loading them."""
        assert self.order is not None
        keys = (key for n in batches for key in _Batches(self.order, self.batch_size).keys(n))
        return sum(int(self.sources[source].packs.targets[pack_]) for source, pack_ in keys)

    def _features(self) -> dict[str, Any]:
        return {} if self.log_mel is None else {"log_mel": self.log_mel}

    # --- loaders --------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        assert self.order is not None
        rank, ranks = self._rank()
        batches = _Batches(self.order, self.batch_size)
        keys = OrderedBatchSampler(batches, self.next_batch, rank, ranks)
        return self._loader(_PackSet(self.sources), keys)

    def val_dataloader(self) -> DataLoader | list[Any]:
        if not self._validation:
            return []
        rank, ranks = self._rank()
        every = [(s, p) for s, source in enumerate(self._validation) for p in range(len(source.packs))]
        batches = [
            every[i : i + self.validation_batch_size]
            for i in range(0, len(every), self.validation_batch_size)
        ]
        # As many on every rank: sharded strategies talk at each forward. An empty batch is one of filler.
        batches += [[]] * (-len(batches) % ranks)
        return self._loader(_PackSet(self._validation), batches[rank::ranks])

    test_dataloader = val_dataloader

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, packs: "_PackSet", keys: Any) -> DataLoader:
        return DataLoader(
            packs,
            batch_sampler=keys,
            num_workers=self.workers,
            collate_fn=_Collate(self.context, self.format),
            timeout=60 if self.workers else 0,  # a hung worker is an error, not a silent wait
            generator=torch.Generator().manual_seed(self.seed),  # draws nothing from the training's numbers
        )

    # --- resume ---------------------------------------------------------------------------------------------

    def advance(self, batches: int) -> None:
        self.next_batch += batches

    def state_dict(self) -> dict[str, Any]:
        return {"next_batch": self.next_batch, "fingerprints": self.fingerprints(), "ranks": self._rank()[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved, own = state_dict["fingerprints"], self.fingerprints()
        if self.order is None:  # validation alone does not continue an order
            return
        for key in ("data", "order"):
            if saved.get(key) != own[key]:
                raise UserError(
                    f"the checkpoint was trained on other {key} (fingerprint {saved.get(key)}, now "
                    f"{own[key]}): resume with the same documents and options, or start a new run"
                )
        self.next_batch = state_dict["next_batch"]


class Source:
    """A folder of documents with its packs, which are kept beside the documents.

    Args:
        folder: The folder of documents.
        context: Rows of a sequence.
        max_bad_share: Share of damaged documents above which it is refused.
        min_fill: Fill rate below which documents are cut, see `pack`.
    """

    def __init__(
        self, folder: Path, context: int, max_bad_share: float = 0.01, min_fill: float = 0.0
    ) -> None:
        self.folder = folder
        self.documents: DocumentSet = read_documents(folder, max_bad_share)
        name = f"{context}-{min_fill:g}-{self.documents.fingerprint}-v{VERSION}.npz"
        self.packs = _kept_packs(folder, name) or self._make_packs(name, context, min_fill)
        self.left_out = len(self.packs.left_out)
        self._check_left_out(context)

    def _make_packs(self, name: str, context: int, min_fill: float) -> Packs:
        with locked(f"{self.folder.absolute()} {name}"):  # one rank of a node packs
            found = _kept_packs(self.folder, name)
            if found is None:
                found = self._pack(context, min_fill)
                for parent in (self.folder, cache_dir()):  # documents may lie where nothing can be written
                    with contextlib.suppress(OSError):
                        found.save(parent / "packs" / name)
                        break
            return found

    def _pack(self, context: int, min_fill: float) -> Packs:
        """A conversation is cut only where the user asks for a fill rate: an answer without its question
        teaches little, and a question without its answer nothing."""
        whole = self.documents.meta["kind"] == "sft" and not min_fill
        return pack(self.documents.lengths, context, min_fill, self.documents.count_targets, whole)

    def _check_left_out(self, context: int) -> None:
        documents, packs = self.documents, self.packs
        if not self.left_out:
            return
        missing = packs.left_out
        longer = int((documents.lengths[missing] > context).sum())
        names = ", ".join(documents.id(i) for i in missing[:5].tolist())
        text = (
            f"{self.folder.name}: {self.left_out} of {len(documents)} documents of kind "
            f"{documents.meta['kind']} left out, {longer} of them longer than the context of {context} rows "
            f"(the longest has {int(documents.lengths[missing].max())}), {self.left_out - longer} without a "
            f"target: {names}{', …' if self.left_out > 5 else ''}"
        )
        if not len(packs):
            raise UserError(f"{text}; nothing is left: raise data.context, or give shorter documents")
        rank_zero_info(text)

    @property
    def fingerprint(self) -> str:
        """Of documents and packs."""
        return f"{self.documents.fingerprint}-{self.packs.fingerprint}"


def _kept_packs(folder: Path, name: str) -> Packs | None:
    found = (Packs.load(parent / "packs" / name) for parent in (folder, cache_dir()))
    return next((packs for packs in found if packs is not None), None)


def _check_alike(sources: Sequence[Source]) -> None:
    """All sources must mean the same by a row; text made without a speech tokenizer knows nothing of audio ids."""
    for key in ("text_tokenizer", "speech_tokenizer", "format"):
        seen: dict[str, str] = {}
        for source in sources:
            meta = source.documents.meta
            value = (
                source.documents.format.fingerprint
                if key == "format" and meta.get("speech_tokenizer")
                else meta.get(key)
            )
            if isinstance(value, str):
                seen.setdefault(value, str(source.folder))
        if len(seen) > 1:
            (a, where_a), (b, where_b), *_ = seen.items()
            raise UserError(
                f"documents of different {key}s: {where_a} has {a}, {where_b} has {b}; make them with the "
                "same backbone and codec"
            )


class _PackSet(Dataset):
    """Packs by (source, pack)."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)

    def __getitem__(self, key: tuple[int, int]) -> list[tuple[str, np.ndarray, np.ndarray]]:
        source = self.sources[key[0]]
        documents, found = source.documents, []
        for document, start, stop in source.packs.pieces(key[1]):
            name = documents.id(document) + (f"+{start}" if start else "")
            found.append(
                (name, documents.rows(document)[start:stop], documents.loss_mask(document)[start:stop])
            )
        return found


class _Batches:
    """Micro-batches of packs, as `OrderedBatchSampler` deals them to ranks."""

    def __init__(self, order: PackOrder, size: int) -> None:
        self.order, self.size = order, size

    def keys(self, n: int) -> list[tuple[int, int]]:
        """(source, pack) of every sequence of micro-batch n."""
        return [self.order.at(n * self.size + i) for i in range(self.size)]


class _Collate:
    def __init__(self, context: int, form: RowFormat) -> None:
        self.context, self.form = context, form

    def __call__(self, packs: list[list[tuple[str, np.ndarray, np.ndarray]]]) -> TokenBatch:
        B = max(1, len(packs))
        rows_BL = np.full((B, self.context), self.form.end_id or 0, dtype=np.int64)
        ids_BL = np.full((B, self.context), -1, dtype=np.int32)
        mask_BL = np.zeros((B, self.context), dtype=bool)
        names: list[str] = []
        lengths: list[int] = []
        for b, documents in enumerate(packs):
            at = 0
            for number, (name, rows, mask) in enumerate(documents):
                here = slice(at, at + len(rows))
                rows_BL[b, here], ids_BL[b, here], mask_BL[b, here] = rows, number, mask
                mask_BL[b, at] = False  # nothing stands before it
                names.append(name)
                lengths.append(len(rows))
                at += len(rows)
        speech_BL = rows_BL >= self.form.text_vocab_size
        speech = int((speech_BL & (ids_BL >= 0)).sum())
        targets = int((mask_BL & ~speech_BL).sum()), int((mask_BL & speech_BL).sum())
        tensors = (torch.from_numpy(rows_BL), torch.from_numpy(ids_BL), torch.from_numpy(mask_BL))
        return TokenBatch(*tensors, names, speech, lengths, *targets)
