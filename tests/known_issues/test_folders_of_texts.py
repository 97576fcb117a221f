"""A folder of texts left out its .txt and .csv files without a word, though the pages promise both."""

import json

import pytest

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.prepare.text_sources import read_text_source


def items(folder) -> list[tuple[str, str]]:
    return [(item["id"], item["text"]) for item in read_text_source(str(folder))]


@pytest.fixture
def folder(tmp_path):
    for name, content in {
        "a.txt": "One.\n\nTwo.\n",
        "sub/a.TXT": "Three.\n",
        "sub/b.csv": "X-1|Dr. A|Doctor A.\nX-2|B.|B.\n",
        "sub/c.csv": "X-1|C.|C.\n",
        "sub/d.jsonl": '{"text": "Four."}\n',
    }.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(content)
    return tmp_path / "in"


def test_text_lists_in_a_folder_are_read(folder, capsys):
    assert items(folder) == [
        ("a-0", "One."),
        ("a-1", "Two."),
        ("sub/a-0", "Three."),
        ("sub/b/X-0", "Doctor A. B."),
        ("sub/c/X-0", "C."),
        ("sub/d-1", "Four."),
    ]
    assert capsys.readouterr().out == ""


def test_other_files_are_counted_and_hidden_ones_are_not_there(folder, capsys):
    for name in ("notes.md", "b.pdf", "sub/c.pdf", "README", ".hidden.txt", ".cache/x.txt", ".git/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert len(items(folder)) == 6
    assert capsys.readouterr().out == (
        "left out 4 files of other kinds: 2 .pdf, 1 .md, 1 without ending; "
        "texts are read from .parquet .jsonl .jsonl.gz .txt .csv: convert what holds texts\n"
    )


def test_a_folder_of_other_files_alone_says_so(tmp_path, capsys):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UserError, match=r"has no \.parquet, .*\.txt, \.csv files"):
        items(tmp_path)
    assert "1 .docx" in capsys.readouterr().out


def test_a_folder_states_the_score_of_lists_too(tmp_path):
    (tmp_path / "4_5").mkdir()
    (tmp_path / "4_5" / "a.txt").write_text("A text.")
    for source in (tmp_path, tmp_path / "4_5" / "a.txt"):
        assert [item["score"] for item in read_text_source(str(source))] == [4.0]


def test_a_stored_list_keeps_its_name():
    import fsspec

    fsspec.filesystem("memory").pipe("/lists/sub/far.txt", b"Far away.")
    fsspec.filesystem("memory").pipe("/lists/.cache/far.txt", b"Hidden.")
    assert items("memory://lists") == [("sub/far-0", "Far away.")]
    assert items("memory://lists/sub/far.txt") == [("far-0", "Far away.")]


def test_a_list_that_is_none_is_one_line(folder, capsys):
    (folder / "sub/e.csv").write_text("a,b,c\n")
    assert (
        main(["prepare", "dedup", str(folder), "--out", str(folder.parent / "out"), "--track", "false"]) == 2
    )
    lines = capsys.readouterr().err.strip().splitlines()
    assert "e.csv, line 1: got 'a,b,c', expected id|text|normalised" in lines[-1]


def test_a_stage_takes_such_a_folder(folder):
    out = folder.parent / "out"
    assert main(["prepare", "dedup", str(folder), "--out", str(out), "--track", "false"]) == 0
    assert len([json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]) == 6
