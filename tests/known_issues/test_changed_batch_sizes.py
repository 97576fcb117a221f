"""After an out-of-memory error a run could not be resumed with a smaller `data.batch_size`.

It was refused with two fingerprints, `…512x1, now …512x2`; so were other changes of the order, without a word
of which option had changed.
"""

import itertools

import pytest
import torch
from lm_recipe import backbone_folder, documents_folder, lm_recipe
from recording import checkpoints, fit, mlflow_runs, seen

from lit_moss.data import InterleavedDataModule
from lit_moss.errors import UserError


@pytest.fixture
def documents(tmp_path):
    return documents_folder(tmp_path / "documents", backbone_folder(tmp_path / "backbone"), "interleaved")


def data_of(documents, **options):
    options = {"context": 96, "batch_size": 2, "backbone": str(documents.parent / "backbone")} | options
    data = InterleavedDataModule(train=[str(documents)], **options)
    data.setup("fit")
    return data


def packs(data, count):
    """Keys of the next packs that training takes."""
    batches = (data.training_batches.keys(n) for n in itertools.count(data.next_batch))
    return list(itertools.islice(itertools.chain.from_iterable(batches), count))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_the_order_of_packs_continues_with_another_batch_size(documents, size):
    whole = data_of(documents)
    expected = packs(whole, 60)
    whole.advance(6)  # 12 packs
    resumed = data_of(documents, batch_size=size)
    resumed.load_state_dict(whole.state_dict())
    assert packs(resumed, 48) == expected[12:]


def test_a_batch_size_that_does_not_divide_the_packs_so_far_is_refused(documents):
    whole = data_of(documents)
    whole.advance(5)
    with pytest.raises(UserError, match=r"batch_size 2 -> 4: .* has consumed 10 packs.* such as 1 or 2"):
        data_of(documents, batch_size=4).load_state_dict(whole.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 64}, r": data.context 96 -> 64; "),
        ({"seed": 5}, r": data.seed 1 -> 5; "),
        ({"seed": 5, "batch_size": 1}, r": data.batch_size 2 -> 1, data.seed 1 -> 5; "),
        ({"min_fill": 0.0, "context": 64}, r": data.context 96 -> 64, data.min_fill 0.97 -> 0.0; "),
        ({"short_first_batches": 2}, "trained on other order"),
    ],
)
def test_other_changes_are_named(documents, changes, message):
    whole = data_of(documents)
    whole.advance(6)
    with pytest.raises(UserError, match=message):
        data_of(documents, **changes).load_state_dict(whole.state_dict())


def test_shortest_first_fixes_the_batch_size(documents):
    whole = data_of(documents, short_first_batches=2)
    whole.advance(6)
    with pytest.raises(UserError, match=r"batch_size 2 -> 1 \(with short_first_batches, batch_size cannot"):
        data_of(documents, batch_size=1, short_first_batches=2).load_state_dict(whole.state_dict())


def test_other_documents_under_the_same_options_are_named_as_such(documents):
    whole = data_of(documents)
    other = documents_folder(documents.parent / "o", documents.parent / "backbone", "interleaved", seed=3)
    state = whole.state_dict()
    state["settings"]["train"] = [str(other)]
    with pytest.raises(UserError, match=r"other data .*: the options are the same, the data has changed"):
        data_of(other).load_state_dict(state)


def test_checkpoints_without_settings_are_still_compared(documents):
    whole = data_of(documents)
    whole.advance(6)
    state = whole.state_dict()
    del state["settings"]
    with pytest.raises(UserError, match=r"trained on other data .*: the data or an option has changed"):
        data_of(documents, context=64).load_state_dict(state)
    data_of(documents, batch_size=1).load_state_dict(state)


@pytest.mark.slow
def test_half_the_batch_size_and_twice_the_micro_batches_continue_the_run(tmp_path):
    """5 steps by batches of 2, then 5 of twice one: an odd number of micro-batches before."""
    for folder, stops in ((tmp_path / "whole", [10]), (tmp_path / "parts", [5, 10])):
        for stop in stops:
            half = ("--data.init_args.batch_size", "1", "--trainer.accumulate_grad_batches", "2",
                    "--ckpt_path", "last", "--trainer.val_check_interval", "16")  # fmt: skip
            fit(folder, lm_recipe(folder, stop), *(half if stop > stops[0] else ()))
    ids = [[name for _, names in seen(tmp_path / run) for name in names] for run in ("whole", "parts")]
    assert ids[0] == ids[1]
    whole, parts = (
        checkpoints(tmp_path / run)["step-0000010.ckpt"]["state_dict"] for run in ("whole", "parts")
    )
    before = checkpoints(tmp_path / "whole")["step-0000005.ckpt"]["state_dict"]
    moved = max(float((whole[name] - before[name]).abs().max()) for name in whole)
    assert all(torch.allclose(parts[name], whole[name], atol=1e-3 * moved) for name in whole)
    (run,) = mlflow_runs(tmp_path / "parts").values()
    assert run.data.tags["resumed_with.data.init_args.batch_size"] == "2 -> 1"


@pytest.mark.slow
def test_steps_are_whole_after_a_change_of_accumulation(tmp_path):
    """The first step after the resume had only what was left of its micro-batches."""
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 5))
    words = ("--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "24")
    fit(folder, lm_recipe(folder, 7), *words, "--ckpt_path", "last")
    assert len(seen(folder)) == 5 + 2 * 3
