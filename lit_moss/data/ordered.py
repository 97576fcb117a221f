"""Base of all training data: batch n of a run is a function of the data, the seed and n.

    order (seed) ── keys of batch n ── rank r of R takes n = next_batch + r, next_batch + r + R, …
                                                            │
                     ExactResume calls advance(R) after every micro-batch; next_batch is in the checkpoint

Neither the number of loader processes nor a resume changes which batch comes next. Subclasses define the
items and their order; loaders, distribution over ranks and checkpoint state are common.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lit_moss.data.order import HasKeys, OrderedBatchSampler
from lit_moss.errors import UserError


class OrderedDataModule(LightningDataModule, ABC):
    """Training data whose order is exact across loader processes, ranks and resumes.

    Args:
        seed: Seed of the order.
        workers: Number of loader processes per rank; 0: load in the training process.
        max_bad_share: Fraction of unreadable items above which a run stops.
        first_batch: Index of the first micro-batch of a new run within the order.

    Attributes:
        next_batch: Number of micro-batches consumed by all ranks together; stored in checkpoints.
        skipped: Key of each unreadable item -> reason.
    """

    def __init__(self, seed: int, workers: int, max_bad_share: float, first_batch: int = 0) -> None:
        super().__init__()
        if seed < 0 or workers < 0:
            raise UserError(f"data.seed is {seed} and workers {workers}, expected 0 or more")
        if not 0 <= max_bad_share <= 1:
            raise UserError(f"data.max_bad_share is {max_bad_share}, expected a share from 0 to 1")
        self.seed, self.workers, self.max_bad_share = seed, workers, max_bad_share
        self.next_batch = first_batch
        self.skipped: dict[str, str] = {}

    # --- properties of the items, defined by subclasses -----------------------------------------------------

    @property
    @abstractmethod
    def utterances(self) -> int:
        """Number of training and validation items (utterances or documents)."""

    @abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the data and its order, recorded with a run and compared on resume."""

    def order_settings(self) -> dict[str, Any]:
        """Options that determine data and order, as plain values; a refused resume names what has changed."""
        return {"seed": self.seed}

    @property
    @abstractmethod
    def training_batches(self) -> HasKeys | None:
        """Order of the training batches; None before `setup("fit")`."""

    @abstractmethod
    def training_set(self) -> Dataset:
        """Training items, by key."""

    @abstractmethod
    def validation_set(self) -> Dataset:
        """Validation items, by key."""

    @abstractmethod
    def validation_batches(self) -> list[list[Any]]:
        """Keys of the validation batches of all ranks; empty without validation data."""

    @abstractmethod
    def collate_function(self) -> Callable[[list[Any]], Any]:
        """The function that collates items into a batch; loader processes get a copy."""

    # --- loaders --------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        assert self.training_batches is not None, "call setup('fit') first"
        rank, ranks = self.rank_and_ranks()
        sampler = OrderedBatchSampler(self.training_batches, self.next_batch, rank, ranks)
        return self.loader(self.training_set(), sampler)

    def val_dataloader(self) -> DataLoader | list[Any]:
        batches = self.validation_batches()
        if not batches:
            return []
        rank, ranks = self.rank_and_ranks()
        # All ranks need the same number of batches, because forwards communicate; the missing ones are empty.
        batches += [[]] * (-len(batches) % ranks)
        return self.loader(self.validation_set(), batches[rank::ranks])

    def test_dataloader(self) -> DataLoader | list[Any]:
        return self.val_dataloader()

    def rank_and_ranks(self) -> tuple[int, int]:
        """This process's rank, and the number of ranks; (0, 1) without a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def loader(self, items: Dataset, batches: OrderedBatchSampler | Sequence[list[Any]]) -> DataLoader:
        """A loader of the batches with these keys."""
        return DataLoader(
            items,
            batch_sampler=batches,  # pyright: ignore[reportArgumentType] - any iterable of lists will do
            num_workers=self.workers,
            collate_fn=self.collate_function(),
            # A hanging worker raises an error within a minute.
            timeout=60 if self.workers else 0,
            # A separate generator: creating an iterator must not consume random numbers of the training.
            generator=torch.Generator().manual_seed(self.seed),
        )

    # --- resume ---------------------------------------------------------------------------------------------

    def advance(self, batches: int) -> None:
        """Counts micro-batches as consumed by training; each step consumes one per rank."""
        self.next_batch += batches

    def state_dict(self) -> dict[str, Any]:
        return {
            "next_batch": self.next_batch,
            "skipped": dict(self.skipped),
            "fingerprints": self.fingerprints(),
            "settings": self.order_settings(),
            "ranks": self.rank_and_ranks()[1],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position in the order from a checkpoint.

        Raises:
            UserError: if the checkpoint was trained on other data or in another order; the message names the
                options that have changed.
        """
        if self.training_batches is None:  # validation needs no order
            return
        saved, own = state_dict["fingerprints"], self.fingerprints()
        for key in ("data", "order", "augmentation"):
            if key in own and saved.get(key) != own[key]:
                changes = self._changes(state_dict.get("settings") or {})
                raise UserError(
                    f"the checkpoint was trained on other {key} (fingerprint {saved.get(key)}, now "
                    f"{own[key]}): {changes}; resume with the same data and options, or start a new run from "
                    "it (model.init_args.init_from)"
                )
        self.next_batch = state_dict["next_batch"]
        self.skipped = dict(state_dict["skipped"])

    def _changes(self, saved: dict[str, Any]) -> str:
        """The options that differ from those of a checkpoint, with both values."""
        own = self.order_settings()
        changed = [
            f"data.{k} {saved[k]} -> {now}" for k, now in own.items() if k in saved and saved[k] != now
        ]
        unknown = (
            "the options are the same, the data has changed" if saved else "the data or an option has changed"
        )
        return ", ".join(changed) or unknown
