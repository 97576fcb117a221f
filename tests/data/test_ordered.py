"""The base of all training data: order, ranks, checkpoints, and what modules and callbacks may expect."""

import pickle
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

import lit_moss.data
from lit_moss.contracts import Batch, OrderedData, SpeechData, TokenData
from lit_moss.data import (
    DecoderBatch,
    DecoderDataModule,
    InterleavedDataModule,
    MixtureDataModule,
    OrderedDataModule,
    SpeechBatch,
    SpeechDataModule,
    TextDataModule,
    TokenBatch,
)
from lit_moss.errors import UserError
from lit_moss.llm.rows import RowFormat


class Numbers(Dataset):
    def __getitem__(self, key):
        return 10 * key


class NumberOrder:
    def keys(self, n):
        return [2 * n, 2 * n + 1]


class NumberData(OrderedDataModule):
    """Batch n is [20 n, 20 n + 10]; three batches of validation."""

    utterances = 6
    training_batches = NumberOrder()

    def __init__(self, data="numbers", **options):
        super().__init__(**({"seed": 1, "workers": 0, "max_bad_share": 0.01} | options))
        self.data = data

    def fingerprints(self):
        return {"data": self.data, "order": "o"}

    def training_set(self):
        return Numbers()

    def validation_set(self):
        return Numbers()

    def validation_batches(self):
        return [[0], [1], [2]]

    def collate_function(self):
        return list


def on_rank(rank, ranks, **options):
    data = NumberData(**options)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)
    return data


def test_data_that_states_no_order_cannot_be_made():
    class Unordered(OrderedDataModule):
        pass

    with pytest.raises(TypeError, match="training_batches"):
        Unordered(1, 0, 0.01)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_take_turns_and_advance_counts_them_all(ranks):
    modules = [on_rank(rank, ranks) for rank in range(ranks)]
    batches = []
    for _ in range(2):
        for data in modules:
            batches.append(next(iter(data.train_dataloader())))
            data.advance(ranks)
    assert batches == [[20 * n, 20 * n + 10] for n in range(2 * ranks)]
    assert {data.next_batch for data in modules} == {2 * ranks}


def test_a_resumed_order_continues_on_another_number_of_ranks():
    first = on_rank(0, 2)
    first.advance(2)
    first.skipped["a"] = "a: empty"
    resumed = on_rank(0, 1)
    resumed.load_state_dict(first.state_dict())
    assert list(islice(resumed.train_dataloader(), 2)) == [[40, 50], [60, 70]]
    assert resumed.skipped == {"a": "a: empty"}


def test_another_order_is_refused_and_changes_nothing():
    first = NumberData()
    first.advance(3)
    other = NumberData(data="others")
    with pytest.raises(UserError, match=r"other data \(fingerprint numbers, now others\)"):
        other.load_state_dict(first.state_dict())
    assert other.next_batch == 0


def test_every_rank_validates_equally_many_batches():
    assert [list(on_rank(rank, 2).val_dataloader()) for rank in (0, 1)] == [[[0], [20]], [[10], []]]


def test_a_new_run_may_start_at_a_later_batch():
    assert next(iter(NumberData(first_batch=4).train_dataloader())) == [80, 90]


# What modules and callbacks expect.


def test_data_modules_offer_what_their_models_expect_before_and_after_setup(corpus):
    speech = SpeechDataModule(train=[str(corpus / "train.jsonl")], workers=0)
    for _ in range(2):
        assert isinstance(speech, SpeechData)
        assert not isinstance(speech, TokenData)
        speech.setup("fit")
    assert isinstance(DecoderDataModule(workers=0), OrderedData)
    for data in (InterleavedDataModule(), MixtureDataModule([TextDataModule()])):
        assert isinstance(data, TokenData)
        assert not isinstance(data, SpeechData)


def test_batches_offer_what_callbacks_read():
    zeros = torch.zeros(1, 4, dtype=torch.long)
    batches = (
        SpeechBatch(torch.zeros(1, 1280), torch.tensor([1280]), ["a"], [""]),
        DecoderBatch(zeros, torch.tensor([4]), torch.zeros(1, 80, 16), torch.zeros(1, 0), ["a"]),
        TokenBatch(zeros, zeros.int(), zeros.bool(), ["a"], 1),
    )
    for batch in batches:
        assert isinstance(batch, Batch)
        assert len(batch) == 1
        assert batch.skipped == []
    assert [batch.audio_sec for batch in batches] == pytest.approx([0.08, 0.32, 0.08])


def test_loader_processes_get_a_copy_of_the_collating_function():
    tokens = InterleavedDataModule()
    tokens._format = RowFormat(100, 50, 98, 48, 99, 0)  # as `setup` does
    for data in (SpeechDataModule(), DecoderDataModule(), tokens):
        assert callable(pickle.loads(pickle.dumps(data.collate_function())))


def test_every_public_name_is_found_and_others_are_not():
    for name in lit_moss.data.__all__:
        assert getattr(lit_moss.data, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        lit_moss.data.Nothing  # noqa: B018


@pytest.mark.slow
def test_mathematics_imports_no_lightning():
    modules = ("order", "packing", "interleave", "conversation", "augment", "transcripts")
    code = "".join(f"import lit_moss.data.{name}; " for name in modules)
    code += "import sys; print({'lightning', 'mlflow', 'optuna'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
