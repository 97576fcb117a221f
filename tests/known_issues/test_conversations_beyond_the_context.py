"""Conversations longer than the context are left out and counted; no step is taken without a target.

Before, they were cut: batches of prompts alone had a loss of 0, and weight decay still moved the weights.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from lm_recipe import backbone_folder, conversations, lm_recipe
from poison import moved
from recording import curves, fit, recipe

from lit_moss.corpora.manifest import read_manifest, write_manifest
from lit_moss.data.documents import DocumentSet
from lit_moss.data.packed_documents import PackedDocuments
from lit_moss.data.packing import pack
from lit_moss.errors import UserError

CONTEXT = 96


def test_they_are_left_out_whole_and_counted(tmp_path, capsys):
    backbone = backbone_folder(tmp_path / "backbone")
    folder = conversations(tmp_path / "talks", backbone, [40, 97, 96, 300, 20, 1000])
    source = PackedDocuments(folder, CONTEXT)
    assert source.left_out == 3
    assert sorted(source.packs.document.tolist()) == [0, 2, 4]
    assert source.packs.targets.sum() == 15
    again = PackedDocuments(folder, CONTEXT)  # from the packs kept beside the documents
    assert (again.left_out, again.packs.fingerprint) == (3, source.packs.fingerprint)
    assert again.packs.targets.tolist() == source.packs.targets.tolist()
    # Who asks for full sequences gets them cut; what then holds no target is left out all the same.
    cut = PackedDocuments(folder, CONTEXT, min_fill=0.9)
    assert cut.packs.targets.min() > 0
    assert cut.packs.targets.sum() == 30


def test_documents_without_a_target_are_left_out(tmp_path):
    backbone = backbone_folder(tmp_path / "backbone")
    masks = [[False] * 30, [True] + [False] * 29, [False] * 29 + [True], None]
    source = PackedDocuments(conversations(tmp_path / "talks", backbone, [30] * 4, masks, "text"), CONTEXT)
    assert source.left_out == 2
    assert source.packs.targets.sum() == 1 + 29


@pytest.mark.parametrize("lengths", [[200, 300], [97]])
def test_a_corpus_of_nothing_else_is_refused_in_one_line(tmp_path, lengths):
    folder = conversations(tmp_path / "talks", backbone_folder(tmp_path / "backbone"), lengths)
    with pytest.raises(UserError, match=r"longer than the context of 96 rows.*raise data.context") as error:
        PackedDocuments(folder, CONTEXT)
    assert "\n" not in str(error.value)


def test_other_documents_are_packed_as_before(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 400, 200)
    folder = conversations(
        tmp_path / "text", backbone_folder(tmp_path / "backbone"), lengths, [None] * 200, "text"
    )
    assert PackedDocuments(folder, CONTEXT).packs.fingerprint == pack(lengths, CONTEXT).fingerprint


def test_targets_of_pieces_are_the_loss_masks_own(tmp_path):
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 200, 60)
    masks = [rng.random(n) < 0.3 if n % 3 else None for n in lengths]
    found = DocumentSet(conversations(tmp_path / "x", backbone_folder(tmp_path / "b"), lengths, masks))
    document = rng.integers(0, 60, 500)
    start = (rng.random(500) * (lengths[document] - 1)).astype(np.int64)
    stop = start + 1 + (rng.random(500) * (lengths[document] - start)).astype(np.int64)
    want = [found.loss_mask(d)[a + 1 : b].sum() for d, a, b in zip(document, start, stop, strict=True)]
    assert found.count_targets(document, start, stop).tolist() == want


def moves(folder):
    return {"class_path": "poison.Moved", "init_args": {"path": str(folder / "moved")}}


def long_talks_recipe(folder, steps, lengths, **model):
    """The tiny language model on conversations of these lengths."""
    extra = [{"class_path": "callbacks.SkippedData"}, moves(folder)]
    path = lm_recipe(folder, steps, kind="sft", stages=[{"policy": "full"}], extra=extra, **model)
    talks = conversations(folder / "talks", folder.parent / "backbone", lengths)
    config = yaml.safe_load(path.read_text())
    config["data"]["init_args"] |= {"train": [str(talks)], "batch_size": 1, "max_left_out_share": 1.0}
    config["trainer"] |= {"val_check_interval": 4}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.nightly
def test_a_run_counts_them_in_mlflow(tmp_path):
    fit(tmp_path / "run", long_talks_recipe(tmp_path / "run", 4, [40, 500, 30, 97, 60]))
    logged = curves(tmp_path / "run")
    assert logged["data/left_out"][-1][1] == 2.0
    assert all(value > 0 for _, value in logged["train/loss"])


@pytest.mark.nightly
def test_a_run_on_nothing_else_ends_in_one_line(tmp_path, capsys):
    fit(tmp_path / "run", long_talks_recipe(tmp_path / "run", 4, [140, 500]), expected=2)
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: talks: 2 of 2 documents")
    assert not list(tmp_path.glob("run/runs/tiny/*/run.json"))


@pytest.mark.nightly
def test_targets_without_weight_train_nothing(tmp_path):
    """`text_weight: 0` on text alone."""
    extra = [moves(tmp_path / "run")]
    path = lm_recipe(
        tmp_path / "run", 3, kind="text", stages=[{"policy": "full"}], extra=extra, text_weight=0.0
    )
    fit(tmp_path / "run", path)
    assert moved(tmp_path / "run" / "moved") == {0: [], 1: [], 2: []}
    logged = curves(tmp_path / "run")
    assert "train/loss" not in logged
    assert logged["train/empty_steps"][-1][1] == 3.0


@pytest.mark.nightly
def test_a_batch_of_unreadable_files_alone_trains_nothing(tmp_path, corpus):
    """The tokenizer's kind of a batch without targets: weights decayed, moments too."""
    broken = tmp_path / "corpus"
    shutil.copytree(corpus, broken)
    utterances = read_manifest(broken / "train.jsonl")
    for u in utterances[::2]:
        u.audio.write_bytes(b"no sound")
    write_manifest(broken / "train.jsonl", utterances)
    folder = tmp_path / "run"
    changes = {"max_bad_share": 1.0, "batch_sec": 11.2}
    path = recipe(folder, broken, 8, model__init_args__quantize_from_step=3,
                  **{f"data__init_args__{k}": v for k, v in changes.items()},
                  **{"trainer__callbacks+": [moves(folder)]})  # fmt: skip
    fit(folder, path)
    logged, seen = curves(folder), [json.loads(line) for line in (folder / "ids.0").read_text().splitlines()]
    empty = [step - 1 for step, ids in seen if not ids]
    assert empty
    assert {step for step, parts in moved(folder / "moved").items() if not parts} >= set(empty) - {3}
    assert logged["train/empty_steps"][-1][1] == len(empty)
    assert all(value > 0 for _, value in logged["train/loss"])


def test_the_public_case(tmp_path, request):
    """Through `prepare documents` and a run's data: nothing that fits is left."""
    case = Path(request.config.rootpath).parent / "shared" / "cases" / "onlylong.jsonl"
    if not case.is_file():
        pytest.skip("needs ../shared/cases")
    from lit_moss.data import SFTDataModule

    backbone = backbone_folder(tmp_path / "backbone")
    data = SFTDataModule(train=[str(case)], backbone=str(backbone), pairs=["text-text"], context=CONTEXT,
                         speech_tokenizer="embedded:whisper-tiny-kmeans", heldout=[])  # fmt: skip
    data.prepare_data()
    with pytest.raises(UserError, match="left out"):
        data.setup("fit")
