"""Texts from lists, Parquet and folders; scores from columns and from names of folders."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_moss.errors import UserError
from lit_moss.prepare.text_sources import checked_scale, folder_score, read_text_source


def parquet(path, rows: list[dict], **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return str(path)


def test_text_lists(tmp_path):
    (tmp_path / "a.txt").write_text("One. Two.\nThree.\n\nFour.\n")
    (tmp_path / "b.csv").write_text("X-1|Dr. A|Doctor A.\nX-2|B.|B.\n")
    assert [(i["id"], i["text"]) for i in read_text_source(str(tmp_path / "a.txt"))] == [
        ("a-0", "One. Two.\nThree."),
        ("a-1", "Four."),
    ]
    assert [(i["id"], i["text"]) for i in read_text_source(str(tmp_path / "b.csv"))] == [
        ("X-0", "Doctor A. B.")
    ]
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n')
    assert read_text_source(str(tmp_path / "c.jsonl")) is None  # a manifest


def test_fineweb_edu_columns_are_kept_and_others_are_not(tmp_path):
    row = {
        "text": "A text.",
        "id": "<urn:1>",
        "score": 3.25,
        "language": "en",
        "url": "http://a",
        "dump": "CC",
    }
    [item] = read_text_source(parquet(tmp_path / "f.parquet", [row]))
    assert item == {
        "id": "<urn:1>",
        "text": "A text.",
        "score": 3.25,
        "lang": "en",
        "url": "http://a",
        "source": "f.parquet",
    }


def test_a_folder_states_the_score_and_the_order_is_that_of_the_names(tmp_path):
    parquet(tmp_path / "3_4" / "0001.parquet", [{"text": "three", "score": 0.7}])
    parquet(tmp_path / "4_5" / "0001.parquet", [{"text": "four"}, {"text": " "}, {"text": "vier"}])
    (tmp_path / "4_5" / "0002.jsonl.gz").write_bytes(gzip.compress(b'{"text": "quatre", "license": "CC0"}\n'))
    (tmp_path / "notes.md").write_text("not a text source")
    items = list(read_text_source(str(tmp_path)))
    assert [(i["id"], i["text"], i["score"]) for i in items] == [
        ("3_4/0001-0", "three", 3.0),
        ("4_5/0001-0", "four", 4.0),
        ("4_5/0001-2", "vier", 4.0),
        ("4_5/0002-1", "quatre", 4.0),
    ]
    assert items[-1]["licence"] == "CC0"
    assert folder_score("s3://b/data/4_5/x.parquet") == 4.0
    assert folder_score("/data/4_6/x.parquet") is None
    assert folder_score("/data/4_5") is None


def test_parquet_is_read_as_a_stream(tmp_path):
    """The first texts are there although a later row group is damaged."""
    rows = [{"text": f"{i} " + "word " * 400} for i in range(4000)]
    path = parquet(
        tmp_path / "big.parquet", rows, row_group_size=500, compression="none", use_dictionary=False
    )
    last = pq.ParquetFile(path).metadata.row_group(7).column(0)
    with open(path, "r+b") as file:
        file.seek(last.data_page_offset)
        file.write(b"\xff" * 64)
    items = read_text_source(path)
    assert [next(items)["id"] for _ in range(500)][-1] == "big-499"
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        list(items)


@pytest.mark.parametrize(
    ("name", "said"), [("a.parquet", "cannot be read as Parquet"), ("folder", "has no .parquet")]
)
def test_what_holds_no_text_is_refused(tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(UserError, match=said):
        list(read_text_source(str(tmp_path / name)))
    with pytest.raises(UserError, match="expected a column text"):
        list(read_text_source(parquet(tmp_path / "b.parquet", [{"body": "x"}])))


def test_stored_files_are_read_by_their_address(tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe("/texts/4_5/a.jsonl", json.dumps({"text": "far away"}).encode() + b"\n")
    parquet(tmp_path / "b.parquet", [{"text": "near"}])
    fsspec.filesystem("memory").pipe("/texts/3_4/b.parquet", (tmp_path / "b.parquet").read_bytes())
    items = list(read_text_source("memory://texts"))
    assert [(i["id"], i["score"]) for i in items] == [("3_4/b-0", 3.0), ("4_5/a-1", 4.0)]


def test_the_scale_of_scores_is_checked():
    ones = [{"id": str(i), "score": i / 100} for i in range(100)]
    with pytest.raises(UserError, match="0 to 1"):
        list(checked_scale(ones, 3.0))
    assert len(list(checked_scale(ones, 0.6))) == 100
    assert len(list(checked_scale([*ones[:50], {"id": "x", "score": 2.5}], 3.0))) == 51
    with pytest.raises(UserError, match="expected a number"):
        list(checked_scale([{"id": "x", "score": "high"}], 3.0))
