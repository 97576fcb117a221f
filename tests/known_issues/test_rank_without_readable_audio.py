"""A rank whose batch holds no readable file takes part with zeros; before, the others waited for it for good.

The same at the codebook's start: a rank without frames stopped alone.
"""

import json
import shutil

import pytest
import torch
from recording import fit_in_process, recipe

from lit_moss.corpora.manifest import read_manifest, write_manifest
from lit_moss.data import SpeechDataModule

pytestmark = pytest.mark.nightly
STEPS, FROM = 10, 2  # the codebook starts before step FROM


def recipe_of_two(folder, corpus):
    """Two ranks, one utterance a batch."""
    keep = {"class_path": "poison.KeepState", "init_args": {"path": str(folder / "state")}}
    return recipe(folder, corpus, STEPS, data__init_args__max_bad_share=1.0, data__init_args__batch_sec=11.2,
                  data__init_args__buckets=1, model__init_args__quantize_from_step=FROM,
                  model__init_args__kmeans_batches=3, trainer__devices=2, trainer__strategy="ddp",
                  trainer__val_check_interval=100, **{"trainer__callbacks+": [keep]})  # fmt: skip


def order_of(corpus):
    """Utterance of each batch."""
    data = SpeechDataModule(train=[str(corpus / "train.jsonl")], batch_sec=11.2, max_sec=10, buckets=1,
                            speeds=[0.9, 1.0])  # fmt: skip
    data.setup("fit")
    assert data.order is not None
    return [data.order.batch(n) for n in range(2 * STEPS)]


@pytest.mark.parametrize("broken", ["some batches of both", "every batch of one"])
def test_two_ranks_survive_wholly_bad_batches(tmp_path, corpus, broken):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    utterances, batches = read_manifest(folder / "train.jsonl"), order_of(folder)
    bad = [3, 6, 8, 9, 13, 16] if broken == "some batches of both" else range(1, 2 * STEPS, 2)
    for index in {i for n in bad for i in batches[n]}:
        utterances[index].audio.write_bytes(b"no sound")
    write_manifest(folder / "train.jsonl", utterances)
    done = fit_in_process(tmp_path, recipe_of_two(tmp_path, folder))
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [[json.loads(line) for line in (tmp_path / f"ids.{r}").read_text().splitlines()] for r in (0, 1)]
    heard = [(step - 1, bool(a), bool(b)) for (step, a), (_, b) in zip(*ranks, strict=True)]
    assert any(a != b for step, a, b in heard if step >= FROM)
    states = [torch.load(tmp_path / f"state.{rank}", weights_only=True) for rank in (0, 1)]
    states[1]["train_use_K"] = states[0]["train_use_K"]  # each rank's own use, a statistic
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert states[0]["codebook_ready"]
    assert int(states[0]["updates"]) == sum(a or b for step, a, b in heard if step >= FROM)
