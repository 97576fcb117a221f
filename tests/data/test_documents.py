"""Token documents: what is written is read, a folder appears whole or not at all, damage is named."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from lit_moss.data.documents import DocumentWriter, read_documents
from lit_moss.errors import UserError
from lit_moss.llm.rows import RowFormat

FORMAT = RowFormat(
    text_vocab_size=100,
    audio_vocab_size=50,
    sosp_token_id=98,
    eosp_token_id=48,
    modality_pad_token_id=99,
    audio_pad_token_id=0,
    end_id=7,
)
META = {
    "kind": "interleaved",
    "options": {"speech_share": 0.5},
    "text_tokenizer": "t1",
    "speech_tokenizer": "c1",
    "format": FORMAT.to_dict(),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))


def some_documents(count, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(count):
        rows = rng.integers(0, 150, int(rng.integers(2, 40)))
        yield f"d{i}", rows, rng.random(len(rows)) < 0.5 if i % 3 == 0 else None


def write(folder, count=30, shard_rows=100, seed=0, **meta):
    with DocumentWriter(folder, META | meta, shard_rows) as writer:
        for name, rows, mask in some_documents(count, seed):
            writer.add(name, rows.tolist(), mask, "interleaved", "en", 0.5)
    return folder


def test_what_was_written_is_read(tmp_path):
    found = read_documents(write(tmp_path / "docs"))
    assert len(found) == 30
    assert len(list((tmp_path / "docs").glob("*.parquet"))) > 3
    for i, (name, rows, mask) in enumerate(some_documents(30)):
        assert found.id(i) == name
        assert found.rows(i).dtype == np.int32
        assert found.rows(i).tolist() == rows.tolist()
        assert found.loss_mask(i).tolist() == ([True] * len(rows) if mask is None else mask.tolist())
        assert found.lengths[i] == len(rows)
    assert found.format == FORMAT
    assert found.speech_sec == pytest.approx(15)
    assert not found.skipped


def test_meta_is_beside_the_shards_and_in_each(tmp_path):
    folder = write(tmp_path / "docs")
    meta = json.loads((folder / "meta.json").read_text())
    assert {k: meta[k] for k in META} == META
    assert meta["documents"] == 30
    assert meta["rows"] == sum(len(rows) for _, rows, _ in some_documents(30))
    assert sum(shard["documents"] for shard in meta["shards"]) == 30
    for path in folder.glob("*.parquet"):
        schema = pq.read_schema(path)
        assert json.loads(schema.metadata[b"lit_moss"]) == META
        assert schema.names == ["id", "rows", "loss_mask", "kind", "lang", "speech_sec"]


def test_other_programs_read_a_shard_as_a_plain_table(tmp_path):
    write(tmp_path / "docs", count=3, shard_rows=10**6)
    table = pq.read_table(tmp_path / "docs/00000.parquet").to_pylist()
    for row, (name, rows, _) in zip(table, some_documents(3), strict=True):
        assert (row["id"], row["rows"], row["kind"], row["lang"]) == (
            name,
            rows.tolist(),
            "interleaved",
            "en",
        )


def test_random_access_in_any_order(tmp_path):
    found = read_documents(write(tmp_path / "docs", 200))
    want = [rows.tolist() for _, rows, _ in some_documents(200)]
    for i in np.random.default_rng(1).permutation(200):
        assert found.rows(int(i)).tolist() == want[i]


# A folder appears whole or not at all.


def test_an_exception_leaves_nothing_behind(tmp_path):
    def stopped():
        with DocumentWriter(tmp_path / "docs", META, 5) as writer:
            writer.add("a", range(10))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_appears_at_the_end(tmp_path):
    with DocumentWriter(tmp_path / "docs", META, 5) as writer:
        writer.add("a", range(10))
        assert not (tmp_path / "docs").exists()
    assert sorted(p.name for p in (tmp_path / "docs").iterdir()) == ["00000.parquet", "meta.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["docs"]


def test_documents_are_never_rewritten(tmp_path):
    write(tmp_path / "docs")
    with pytest.raises(UserError, match="never rewritten"):
        write(tmp_path / "docs")


def test_two_makers_of_the_same_documents_agree(tmp_path):
    with DocumentWriter(tmp_path / "docs", META) as slow:
        slow.add("a", [1, 2, 3])
        with DocumentWriter(tmp_path / "docs", META) as fast:
            fast.add("a", [1, 2, 3])
    assert read_documents(tmp_path / "docs").rows(0).tolist() == [1, 2, 3]
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["docs"]


def test_two_makers_of_different_documents_do_not(tmp_path):
    slow = DocumentWriter(tmp_path / "docs", META).__enter__()
    slow.add("a", [1, 2, 3])
    with DocumentWriter(tmp_path / "docs", META) as fast:
        fast.add("a", [1, 2, 4])
    with pytest.raises(UserError, match="made meanwhile"):
        slow.__exit__(None)
    assert read_documents(tmp_path / "docs").rows(0).tolist() == [1, 2, 4]


def test_no_documents_are_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no document came out"), DocumentWriter(tmp_path / "docs", META):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "mask", "kind", "message"),
    [
        ([], None, "text", "0 rows, expected 2"),
        ([1], None, "text", "1 rows"),
        ([1, 150], None, "text", "to 150, expected 2 or more from 0 to 149"),
        ([-1, 5], None, "text", "from -1"),
        ([1, 2, 3], [True, False], "text", "a loss mask of 2"),
        ([1, 2, 3], None, "speech", "a kind of interleaved, unsupervised, text, sft"),
    ],
)
def test_invalid_documents_are_refused(tmp_path, rows, mask, kind, message):
    with pytest.raises(ValueError, match=message), DocumentWriter(tmp_path / "docs", META) as writer:
        writer.add("a", rows, mask, kind)


# Fingerprints.


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(tmp_path):
    one = read_documents(write(tmp_path / "a"))
    assert read_documents(write(tmp_path / "b", shard_rows=50)).fingerprint == one.fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert read_documents(tmp_path / "moved").fingerprint == one.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"count": 29},
        {"text_tokenizer": "t2"},
        {"speech_tokenizer": "c2"},
        {"format": FORMAT.to_dict() | {"end_id": 8}},
    ],
)
def test_the_fingerprint_depends_on_what_the_rows_mean(tmp_path, changes):
    one, other = read_documents(write(tmp_path / "a")), read_documents(write(tmp_path / "b", **changes))
    assert one.fingerprint != other.fingerprint


# Damaged data.

DAMAGES = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zero bytes": lambda path: path.write_bytes(b""),
    "a flipped byte": lambda path: path.write_bytes(
        path.read_bytes()[:40] + bytes([path.read_bytes()[40] ^ 1]) + path.read_bytes()[41:]
    ),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_left_out_named_and_counted(tmp_path, damage):
    folder = write(tmp_path / "docs")
    shards = json.loads((folder / "meta.json").read_text())["shards"]
    whole = read_documents(folder)
    damage(folder / shards[1]["name"])
    with pytest.warns(UserWarning, match=f"{shards[1]['documents']} of 30 documents cannot be read"):
        found = read_documents(folder, max_bad_share=0.5)
    assert list(found.skipped) == ["00001.parquet"]
    assert found.skipped_documents == shards[1]["documents"]
    assert len(found) == 30 - shards[1]["documents"]
    lost = range(shards[0]["documents"], shards[0]["documents"] + shards[1]["documents"])
    left = [(name, rows.tolist()) for i, (name, rows, _) in enumerate(some_documents(30)) if i not in lost]
    assert [(found.id(i), found.rows(i).tolist()) for i in range(len(found))] == left
    assert found.fingerprint != whole.fingerprint


def test_more_than_one_percent_of_damage_is_refused_by_name(tmp_path):
    folder = write(tmp_path / "docs")
    (folder / "00002.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"00002\.parquet: \d+ documents, the file is empty\), more than 1%"):
        read_documents(folder)


def test_one_damaged_shard_of_many_is_tolerated(tmp_path):
    folder = tmp_path / "docs"
    with DocumentWriter(folder, META, shard_rows=20) as writer:
        for i in range(400):
            writer.add(f"d{i}", [i % 150, 2, 3, 4, 5])
    DAMAGES["a flipped byte"](folder / "00010.parquet")
    with pytest.warns(UserWarning, match="4 of 400"):
        assert len(read_documents(folder)) == 396


def test_with_every_shard_damaged_nothing_is_read(tmp_path):
    folder = write(tmp_path / "docs", shard_rows=10**6)
    (folder / "00000.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="30 of 30"):
        read_documents(folder, max_bad_share=1.0)


def test_a_folder_without_documents(tmp_path):
    with pytest.raises(UserError, match="holds no token documents"):
        read_documents(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": {"end_id": 1}}'], ids=["empty", "cut", "list", "bare", "format"]
)
def test_a_damaged_meta(tmp_path, text):
    folder = write(tmp_path / "docs")
    (folder / "meta.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        read_documents(folder)
