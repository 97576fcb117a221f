"""Token documents as packed batches for the language model (the kinds of data are in `kinds.py`).

The n-th pack depends only on the documents, the seed and n (see `packing`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor

from lit_moss.corpora.sources import entry_kind, locate
from lit_moss.data.document_options import check_made_with, stated_options
from lit_moss.data.documents import META
from lit_moss.data.once import cache_lock
from lit_moss.data.ordered import OrderedDataModule
from lit_moss.data.packed_documents import CollatePacks, PackedDocuments, PackSet, check_same_tokenizers
from lit_moss.data.packing import PackedBatches, PackOrder
from lit_moss.errors import UserError
from lit_moss.hub.tokenizer import NamedTokenizer
from lit_moss.llm.replies import ReplyForm
from lit_moss.llm.rows import RowFormat

LogMel = Literal["causal", "whisper"]
_ALIGNED_DOCUMENTS = 5000


class TokenDataModule(OrderedDataModule):
    """Packed token documents of one kind.

    An entry of `train` or `validation` is a folder of token documents (see `prepare documents`), or a source
    of documents: a manifest, a text file, `embedded:everyday-en`. Sources are converted to documents once,
    which are cached.

    Args:
        train: Training data: folders of token documents, or sources of documents.
        validation: Validation data: folders of token documents, or sources of documents.
        backbone: Backbone whose text tokenizer makes the text rows: folder, Hugging Face id,
            `embedded:smollm2-135m`.
        speech_tokenizer: Speech tokenizer that makes the codes: checkpoint, run folder, folder,
            `embedded:whisper-tiny-kmeans`.
        log_mel: Features of the speech tokenizer, `causal` or `whisper`. None: as stated in the tokenizer's
            folder, see `SpeechTokenizer.from_pretrained`.
        heldout: Manifests whose sentences are held-out items for perplexity and cloze, in text and speech.
            Default: those of `validation`.
        heldout_items: Maximum number of held-out items of each modality; 0: none.
        context: Number of rows of a training sequence.
        batch_size: Number of sequences per micro-batch and rank.
        validation_batch_size: Number of sequences per validation batch and rank.
        seed: Seed of the order.
        workers: Number of loader processes per rank; 0: load in the training process.
        min_fill: Minimum fraction of rows in training sequences that are not filler. If packing whole
            documents does not reach it, documents are cut. 0: only documents longer than the context are cut,
            as in validation.
        max_bad_share: Fraction of unreadable documents above which a run does not start.
        max_left_out_share: Fraction of the rows of a folder, in conversations and transcripts longer than the
            context, above which a run does not start; such documents are left out, not cut.
        first_batch: Index of the first micro-batch within the order, counted over all ranks: a second stage
            can continue where the first one, with the same data and seed, stopped.
        short_first_batches: Number of initial micro-batches (all ranks together, at most one round) that take
            the shortest documents, in ascending order of length. 0: all batches are shuffled.
        speech_text: Store the text of the speech in documents, for `model.ctc`, `model.align` and
            `init_codes: text`. Folders of token documents must have been made with this option.
        asr_items: Number of short utterances of `heldout` that the model transcribes at each validation; 0:
            none.
        asr_prompt: Text before the speech of the `asr_items`.

    Attributes:
        left_out: Number of documents longer than the context, or without a target; set by `setup`.
        given: Names of the arguments in the user's files and options, set by the command line. Arguments that
            differ from their default count as set in any case.
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
        short_first_batches: int = 0,
        speech_text: bool = False,
        asr_items: int = 0,
        asr_prompt: str = "",
        max_left_out_share: float = 0.2,
    ) -> None:
        super().__init__(seed, workers, max_bad_share, first_batch)
        if min(context, batch_size, validation_batch_size) < 1 or context < 2:
            raise UserError(
                f"data.context {context}, batch_size {batch_size}, validation_batch_size "
                f"{validation_batch_size}: expected 2 rows and 1 sequence at least"
            )
        if not 0 <= min_fill <= 1:
            raise UserError(f"data.min_fill is {min_fill}, expected 0 to 1")
        if not 0 <= max_left_out_share <= 1:
            raise UserError(f"data.max_left_out_share is {max_left_out_share}, expected a share from 0 to 1")
        if first_batch < 0:
            raise UserError(f"data.first_batch is {first_batch}, expected 0 or more")
        if heldout_items < 0:
            raise UserError(f"data.heldout_items is {heldout_items}, expected 0 or more")
        if min(short_first_batches, asr_items) < 0:
            raise UserError(
                f"data.short_first_batches is {short_first_batches} and asr_items {asr_items}, expected 0 or "
                "more"
            )
        self.train, self.validation = list(train or []), list(validation or [])
        self.heldout = list(heldout if heldout is not None else self.validation)
        self.heldout_items, self.min_fill = heldout_items, min_fill
        self.batch_size, self.validation_batch_size = batch_size, validation_batch_size
        self.short_first_batches, self.speech_text = short_first_batches, speech_text
        self.asr_item_count, self.asr_prompt = asr_items, asr_prompt
        self.max_left_out_share = max_left_out_share
        self.connect(context, max_bad_share, backbone, speech_tokenizer, log_mel)
        self.left_out, self.given = 0, frozenset[str]()
        self.sources: list[PackedDocuments] = []
        self.epochs: list[float] = []  # number of times a round contains each source
        self.order: PackOrder | None = None
        self._validation: list[PackedDocuments] = []
        self._format: RowFormat | None = None
        self._text_tokenizer: Any = None
        self._folders: dict[tuple[str, str], Path] = {}  # folders of documents, by entry and part

    def connect(
        self,
        context: int,
        max_bad_share: float,
        backbone: str,
        speech_tokenizer: str | None,
        log_mel: LogMel | None,
    ) -> None:
        """Sets what all documents of a run must have in common; a mixture calls it on its parts."""
        self.context, self.max_bad_share = context, max_bad_share
        self.backbone, self.speech_tokenizer = backbone, speech_tokenizer
        self.log_mel: LogMel | None = log_mel

    def options(self) -> dict[str, Any]:
        """Options of `make_documents` for this kind, without sources, backbone and speech tokenizer."""
        return {}

    def stated_options(self) -> dict[str, Any]:
        """Arguments whose value is not true of the training documents, which are read from folders.

        The value is what the documents state instead; None if they differ among themselves.
        """
        folders = [Path(entry) for entry in self.train if (Path(entry) / META).is_file()]
        is_made_here = len(folders) < len(self.train)
        return stated_options(folders, self.kind, self.options(), is_made_here)

    # --- set-up ---------------------------------------------------------------------------------------------

    def documents(self, entry: str, part: Literal["train", "validation"]) -> Path:
        """Folder of an entry's token documents; if it does not exist, one process of a node makes it.

        Raises:
            UserError: if it is a folder of documents that were made with other options than the user has set.
        """
        if (Path(entry) / META).is_file():
            check_made_with(Path(entry), self.kind, self.options(), self.given)
            return Path(entry)
        if Path(entry).is_dir():
            raise UserError(
                f"{entry} is a folder without {META}: expected token documents, a manifest or a text file"
            )
        if (entry, part) not in self._folders:
            from lit_moss.data.make_documents import make_documents

            inputs = (self.kind, [entry], part, self.backbone, self.speech_tokenizer)
            spoken = self.speech_text and self.kind != "text"
            options = self.options() | ({"speech_text": True} if spoken else {})
            with cache_lock(f"documents {inputs} {options}"):
                self._folders[entry, part] = make_documents(
                    *inputs, options=options, log_mel=self.log_mel, max_bad_share=self.max_bad_share
                )
        return self._folders[entry, part]

    def prepare_data(self) -> None:
        for entry in self.train:
            self.documents(entry, "train")
        for entry in self.validation:
            self.documents(entry, "validation")
        self.cloze_items()

    def load(self) -> None:
        """Opens and packs the training documents; a mixture calls it on its parts."""
        if not self.train:
            raise UserError(
                f"data.train of {type(self).__name__} is empty: expected folders of token documents, or what "
                "they are made of"
            )
        self.sources = [self._packed(entry, "train", self.min_fill) for entry in self.train]
        self.epochs = [1.0] * len(self.sources)

    def load_validation(self) -> list[PackedDocuments]:
        """Opens and packs the validation documents; a mixture calls it on its parts."""
        return [self._packed(entry, "validation") for entry in self.validation]

    def _packed(
        self, entry: str, part: Literal["train", "validation"], min_fill: float = 0.0
    ) -> PackedDocuments:
        folder, left_out = self.documents(entry, part), self.max_left_out_share
        return PackedDocuments(folder, self.context, self.max_bad_share, min_fill, left_out)

    def setup(self, stage: str) -> None:
        if not self._validation:
            self._validation = self.load_validation()
        if stage == "fit" and self.order is None:
            self.load()
            self.order = self._make_order()
            self._log_contents(self.order)
        every = self.sources + self._validation
        if not every:
            raise UserError("data.train and data.validation are empty: expected token documents or manifests")
        for source in every:
            self.skipped |= {f"{source.folder / k}": f"{k}: {v}" for k, v in source.documents.skipped.items()}
        self.left_out = sum(s.left_out for s in every)
        check_same_tokenizers(every)
        # Documents made without a speech tokenizer do not know its number of codes.
        spoken = [s for s in every if s.documents.meta.get("speech_tokenizer")]
        self._format = (spoken or every)[0].documents.format
        if self.speech_tokenizer is not None and self._held_out_sounds:
            self._named_tokenizer("the held-out items")
        if self.speech_text and not any(s.documents.has_speech_text for s in every):
            raise UserError(
                f"{every[0].folder} does not carry the text of its speech, which data.speech_text asks for: "
                "make the documents again with speech_text (prepare documents --speech-text), or give "
                "manifests"
            )

    def _make_order(self) -> PackOrder:
        short_first = self.short_first_batches * self.batch_size
        rows = [s.packs.rows_per_piece for s in self.sources] if short_first else None
        sizes = [len(s.packs) for s in self.sources]
        return PackOrder(sizes, self.epochs, self.seed, rows, short_first)

    @rank_zero_only
    def _log_contents(self, order: PackOrder) -> None:
        for source, share in zip(self.sources, order.shares, strict=True):
            documents, packs = source.documents, source.packs
            if skipped := documents.meta.get("skipped"):
                rank_zero_warn(
                    f"{source.folder.name} lacks {len(skipped)} recordings that could not be read or have no "
                    f"transcript: {', '.join(map(str, skipped[:5]))}{' …' if len(skipped) > 5 else ''}"
                )
            rank_zero_info(
                f"train: {source.folder.name}: {len(documents)} documents of kind {documents.meta['kind']}, "
                f"{int(documents.lengths.sum())} rows, {documents.speech_sec / 3600:.2f} h of speech, "
                f"{len(packs)} packs {packs.fill_rate:.1%} full, {share:.4g} of them a round"
            )
        rank_zero_info(
            f"train: {order.packs_per_round / self.batch_size:.1f} batches a round, "
            f"{self.fill_rate:.1%} full, of {self.batch_size * self.context} rows (per rank and micro-batch)"
        )

    @property
    def reply_forms(self) -> list[ReplyForm]:
        """Forms of spoken replies in the training conversations, without duplicates."""
        metas = [source.documents.meta for source in self.sources]
        options = [meta.get("options") or {} for meta in metas if meta["kind"] == "sft"]
        return list(dict.fromkeys(map(ReplyForm.of_options, options)))

    @property
    def trains_on_prompts(self) -> bool:
        """Whether the user's turns are also targets in some of the conversations."""
        metas = [source.documents.meta for source in self.sources]
        return any(m["kind"] == "sft" and (m.get("options") or {}).get("train_on") == "all" for m in metas)

    # --- properties of the data -----------------------------------------------------------------------------

    @property
    def format(self) -> RowFormat:
        """Row format of the documents; available after `setup`."""
        assert self._format is not None, "call setup first"
        return self._format

    @property
    def fill_rate(self) -> float:
        """Fraction of training rows that are not filler."""
        assert self.order is not None, "call setup('fit') first"
        filled = sum(s.packs.fill_rate * n for s, n in zip(self.sources, self.order.shares, strict=True))
        return filled / self.order.packs_per_round

    @property
    def utterances(self) -> int:
        """Number of documents of training and validation."""
        return sum(len(s.documents) for s in self.sources + self._validation)

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of row format, tokenizers, data and order, where they exist."""
        fingerprints = {}
        every = self.sources + self._validation
        if every:
            fingerprints["format"] = self.format.fingerprint
            for key in ("text_tokenizer", "speech_tokenizer"):
                values = (source.documents.meta.get(key) for source in every)
                fingerprints[key] = next((str(value) for value in values if value), "none")
        if self.sources:
            fingerprints["data"] = "+".join(s.fingerprint for s in self.sources)
        if self._validation:
            fingerprints["validation"] = "+".join(s.fingerprint for s in self._validation)
        if self.order is not None:
            fingerprints["order"] = f"{self.order.fingerprint}-{self.context}x{self.batch_size}"
        return fingerprints

    def order_settings(self) -> dict[str, Any]:
        own = {"train": self.train, "context": self.context, "batch_size": self.batch_size}
        own |= {"min_fill": self.min_fill, "epochs": list(self.epochs)}
        if self.short_first_batches:
            own["short_first_batches"] = self.short_first_batches
        return own | super().order_settings()

    @property
    def _held_out_sources(self) -> list[str]:
        """Entries of `heldout` that contain sentences; folders of token documents do not."""
        return [entry for entry in self.heldout if not (Path(entry) / META).is_file()]

    @property
    def _held_out_sounds(self) -> bool:
        """Whether held-out items include speech."""
        if not (self.heldout_items or self.asr_item_count):
            return False
        return any(entry_kind(locate(entry, "validation")) == "speech" for entry in self._held_out_sources)

    def _named_tokenizer(self, what: str) -> NamedTokenizer:
        """The speech tokenizer, checked to be the one that made the documents."""
        assert self.speech_tokenizer is not None
        named = NamedTokenizer(self.speech_tokenizer, self.log_mel)
        made_by = self.fingerprints().get("speech_tokenizer", "none")
        if made_by not in ("none", named.fingerprint):
            raise UserError(
                f"data.speech_tokenizer {self.speech_tokenizer}, of which {what} are made, is "
                f"{named.fingerprint}, the documents were made by {made_by}: give the one that made them"
            )
        return named

    def cloze_items(self) -> list[Any]:
        """Held-out cloze items of both modalities; made once."""
        manifests = self._held_out_sources
        if not self.heldout_items or not manifests:
            return []
        from lit_moss.data.cloze import make_cloze

        inputs = (manifests, "validation", self.backbone, self.speech_tokenizer, self.heldout_items)
        with cache_lock(f"cloze {inputs}"):
            return make_cloze(*inputs, log_mel=self.log_mel)

    def asr_items(self) -> list[Any]:
        """Held-out utterances for the model to transcribe; [] if none are requested."""
        manifests = self._held_out_sources
        if not self.asr_item_count or not manifests:
            return []
        if self.speech_tokenizer is None:
            raise UserError(
                "data.asr_items needs codes of the held-out manifests, but data.speech_tokenizer is not set: "
                "name the speech tokenizer that made the documents, or set asr_items 0"
            )
        from lit_moss.data.listening import make_asr_items

        named = NamedTokenizer(self.speech_tokenizer, self.log_mel)
        with cache_lock(f"asr {manifests} {self.speech_tokenizer}"):
            return make_asr_items(
                manifests, self.text_tokenizer(), named, self.asr_item_count, self.asr_prompt
            )

    def targets_of(self, batches: range) -> int:
        """Number of targets in these micro-batches of the order, without loading them."""
        order = self.training_batches
        assert order is not None, "call setup('fit') first"
        keys = (key for n in batches for key in order.keys(n))
        return sum(int(self.sources[source].packs.targets[pack]) for source, pack in keys)

    # --- resume ---------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position in the order of packs, also with another `batch_size`.

        The order is one of packs, which batches take one after the other. So a resume with another batch size
        continues it exactly if the packs consumed so far are a whole number of the new batches.
        """
        order = str(state_dict["fingerprints"].get("order"))
        size = _batch_size_of(order)
        consumed = state_dict["next_batch"] * (size or 0)
        if self.order is not None and consumed and size != self.batch_size:
            renamed = f"{order.removesuffix(f'x{size}')}x{self.batch_size}"
            if renamed == self.fingerprints()["order"]:
                batches, rest = divmod(consumed, self.batch_size)
                if rest:
                    raise UserError(
                        f"data.batch_size {size} -> {self.batch_size}: the checkpoint has consumed "
                        f"{consumed} packs, expected a multiple of {self.batch_size}; resume with a "
                        f"batch_size that divides it, such as 1 or {size}"
                    )
                rank_zero_info(
                    f"resumed with data.batch_size {size} -> {self.batch_size}: the order continues at pack "
                    f"{batches * self.batch_size}"
                )
                fingerprints = state_dict["fingerprints"] | {"order": renamed}
                state_dict = state_dict | {"next_batch": batches, "fingerprints": fingerprints}
        super().load_state_dict(state_dict)

    def _changes(self, saved: dict[str, Any]) -> str:
        changes = super()._changes(saved)
        if self.short_first_batches and saved.get("batch_size", self.batch_size) != self.batch_size:
            changes += " (with short_first_batches, batch_size cannot change)"
        return changes

    # --- speech with its text -------------------------------------------------------------------------------

    def codebook(self) -> Tensor:
        """Codebook of the speech tokenizer, float32 (codes, width).

        Raises:
            UserError: if the tokenizer cannot be opened, or did not make the documents.
        """
        if self.speech_tokenizer is None:
            raise UserError(
                "data.speech_tokenizer is not set, but model.init_codes needs its codebook: name the speech "
                "tokenizer that made the documents, or set init_codes random"
            )
        named = self._named_tokenizer("embeddings of codes")
        return named.opened.encoder.codebook.weight.detach().float().cpu()

    def text_tokenizer(self) -> Any:
        """The text tokenizer, opened on first use."""
        if self._text_tokenizer is None:
            from lit_moss.llm.backbone import load_text_tokenizer

            self._text_tokenizer = load_text_tokenizer(self.backbone)
        return self._text_tokenizer

    def spoken_ids(self) -> Tensor:
        """Text ids that occur in the text of the training speech, sorted, int64 (ids,)."""
        ids = [source.documents.spoken_ids() for source in self.sources]
        return torch.from_numpy(np.unique(np.concatenate([np.zeros(0, np.int64), *ids])))

    def aligned_codes(self) -> tuple[Tensor, Tensor]:
        """Codes of the training data and the text id that each is aligned to, int64 (pairs,) each.

        A piece of text (a word if word times are known) is spread evenly over its codes. Of each source, the
        first 5000 documents are used.
        """
        codes, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for source in self.sources:
            documents, V = source.documents, source.documents.format.text_vocab_size
            for i in range(min(len(documents), _ALIGNED_DOCUMENTS)):
                rows = documents.rows(i)
                for first, stop, said in documents.speech_text(i):
                    if stop > first and len(said):
                        at = np.arange(stop - first) * len(said) // (stop - first)
                        codes.append(rows[first:stop].astype(np.int64) - V)
                        ids.append(np.asarray(said, dtype=np.int64)[at])
        return torch.from_numpy(np.concatenate(codes)), torch.from_numpy(np.concatenate(ids))

    # --- loaders --------------------------------------------------------------------------------------------

    @property
    def training_batches(self) -> PackedBatches | None:
        return None if self.order is None else PackedBatches(self.order, self.batch_size)

    def training_set(self) -> PackSet:
        return PackSet(self.sources, self.speech_text)

    def validation_set(self) -> PackSet:
        return PackSet(self._validation, self.speech_text)

    def validation_batches(self) -> list[list[tuple[int, int]]]:
        """All packs in order; an empty batch is collated to one sequence of filler."""
        keys = [(s, p) for s, source in enumerate(self._validation) for p in range(len(source.packs))]
        size = self.validation_batch_size
        return [keys[i : i + size] for i in range(0, len(keys), size)]

    def collate_function(self) -> Callable[[list[Any]], Any]:
        return CollatePacks(self.context, self.format)


def _batch_size_of(order: str) -> int | None:
    """Batch size in a fingerprint of the order, which ends with CONTEXTxBATCH_SIZE."""
    size = order.rpartition("x")[2]
    return int(size) if size.isdigit() else None
