"""Shards are checked, copied and packed once on a machine, whatever the number of ranks and starts."""

import multiprocessing
import os
import shutil

import numpy as np
import pytest

from lit_moss.data import InterleavedDataModule, arrow, packed_documents
from lit_moss.data.documents import DocumentWriter, read_documents
from lit_moss.errors import UserError
from lit_moss.llm.rows import RowFormat

FORMAT = RowFormat(100, 50, 98, 48, 99, 0, end_id=7)
TOKENIZERS = {"text_tokenizer": "t", "speech_tokenizer": "c"}
META = {"kind": "interleaved", "options": {}, "format": FORMAT.to_dict()} | TOKENIZERS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    with DocumentWriter(tmp_path / "docs", META, shard_rows=100) as writer:
        for i in range(60):
            writer.add(f"d{i}", rng.integers(0, 150, int(rng.integers(2, 40))))
    return tmp_path / "docs"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Lines of what was done by all processes together."""
    log = tmp_path / "work"

    def noted(what, function):
        def call(*args, **kwargs):
            with log.open("a") as file:
                file.write(f"{what}\n")
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(arrow, "sha256_of", noted("hash", arrow.sha256_of))
    monkeypatch.setattr(arrow.pq, "ParquetFile", noted("read", arrow.pq.ParquetFile))
    monkeypatch.setattr(packed_documents, "pack", noted("pack", packed_documents.pack))
    return lambda: sorted(log.read_text().split()) if log.exists() else []


def start(folder):
    data = InterleavedDataModule(train=[str(folder)], context=64, heldout_items=0)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    return data.fingerprints(), batch.ids


def in_processes(folder, count):
    """`start` in forked processes at the same time."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def run():
        queue.put(start(folder))
        queue.close()
        queue.join_thread()
        os._exit(0)

    ranks = [context.Process(target=run) for _ in range(count)]
    for rank in ranks:
        rank.start()
    found = [queue.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    return found


@pytest.mark.slow
def test_ranks_that_start_together_share_the_work_and_later_starts_have_none(folder, work):
    shards = len(list(folder.glob("*.parquet")))
    together = in_processes(folder, 4)
    once = sorted(["hash"] * shards + ["read"] * shards + ["pack"])
    assert shards > 3
    assert work() == once
    assert start(folder) == together[0]
    assert all(found == together[0] for found in together)
    assert work() == once


def test_documents_that_are_left_out_are_counted_once(folder, monkeypatch):
    def left_out():
        data = InterleavedDataModule(train=[str(folder)], context=64, heldout_items=0)
        data.setup("fit")
        return data.left_out

    with DocumentWriter(folder.parent / "masked", META) as writer:
        for i in range(9):
            writer.add(f"m{i}", [1, 2, 3], [False, False, i > 3])
    folder = folder.parent / "masked"
    assert left_out() == 4

    def refused(*_, **__):
        raise AssertionError("every piece is read")

    monkeypatch.setattr(np, "setdiff1d", refused)
    monkeypatch.setattr(np, "unique", refused)
    assert left_out() == 4


def test_a_copied_folder_is_checked_and_not_copied_to_arrow_again(folder, work, tmp_path):
    before = read_documents(folder)
    shutil.copytree(folder, tmp_path / "moved")
    first = work()
    assert read_documents(tmp_path / "moved").fingerprint == before.fingerprint
    assert work().count("read") == first.count("read")
    assert work().count("hash") == 2 * first.count("hash")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_copy_that_is_damaged_is_made_again(folder, damage, tmp_path):
    rows = [read_documents(folder).rows(i).tolist() for i in range(60)]
    (copy,) = (tmp_path / "cache/arrow").glob("documents-*/documents.arrow")
    if damage == "cut":
        copy.write_bytes(copy.read_bytes()[:-100])
    else:
        copy.unlink()
    assert [read_documents(folder).rows(i).tolist() for i in range(60)] == rows


def test_a_repaired_shard_is_read_again(folder):
    victim = folder / "00001.parquet"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-10])
    with pytest.warns(UserWarning, match="cannot be read"):
        assert len(read_documents(folder, max_bad_share=0.9)) < 60
    victim.write_bytes(whole)
    assert len(read_documents(folder)) == 60


def test_a_cache_that_cannot_be_written_is_one_line(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set LIT_MOSS_CACHE to another folder"):
        read_documents(folder)


def test_documents_that_cannot_be_written_beside_are_packed_once(folder, work):
    (folder / "packs").write_text("a file, so that no packs can stand there")
    first = start(folder)
    assert work().count("pack") == 1
    assert start(folder) == first
    assert work().count("pack") == 1
