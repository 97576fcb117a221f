"""Lists of questions that have the same file name, as published ones do (`test-00000-of-00001.parquet`),
counted as one list: reports had no line for each, or mixed two of them."""

import json

import pytest

from lit_moss.evaluate.modality_gap import gaps_of
from lit_moss.evaluate.questions import EMBEDDED, list_names, read_questions
from lit_moss.evaluate.spoken_qa import Config, parts_of


def make_list(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"question": "Who?", "answers": ["Me"]}) + "\n")
    return str(path)


def test_each_list_has_its_own_lines(tmp_path):
    names = [make_list(tmp_path / name) for name in ("a/test.jsonl", "b/test.jsonl", "c/dev.jsonl")]
    questions = read_questions(names)
    assert [q.source for q in questions] == ["a-test", "b-test", "dev"]
    assert [q.id for q in questions] == ["a-test-00001", "b-test-00001", "dev-00001"]
    rows = [{"source": q.source, "group": "", "lang": q.lang, "voice": ""} for q in questions]
    assert list(parts_of(rows)) == ["source a-test", "source b-test", "source dev"]
    rights = {"text-text": [True, False, True], "speech-text": [False, False, True]}
    gaps = gaps_of(questions, rights)
    assert gaps["source a-test"]["input gap"].points == 100
    assert gaps["source b-test"]["input gap"].points == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["x/test.jsonl"], ["test"]),
        (["x/test.jsonl", "x/dev.jsonl"], ["test", "dev"]),
        # Published sets lie in a folder `data` each.
        (["llama/data/test-0.parquet", "web/data/test-0.parquet"], ["llama-data-test-0", "web-data-test-0"]),
        (["x/y/test.jsonl", "y/test.jsonl"], ["x-y-test", "{here}-y-test"]),
        (["x/test.jsonl", "x/test.csv", "x/test.jsonl"], ["test", "test-2", "test-3"]),
        ([EMBEDDED, "mine/questions.jsonl"], ["embedded-questions", "mine-questions"]),
    ],
)
def test_folders_tell_files_apart_where_they_must(tmp_path, monkeypatch, files, expected):
    monkeypatch.chdir(tmp_path)  # names relative to here, and whole ones
    expected = [name.replace("{here}", tmp_path.name) for name in expected]
    assert list_names(files) == expected
    assert list_names([f if f == EMBEDDED else str(tmp_path / f) for f in files]) == expected


def test_only_reports_of_such_lists_are_made_again(tmp_path):
    """The folder of an evaluation follows from `sources`."""
    a, b, c = (make_list(tmp_path / name) for name in ("a/test.jsonl", "b/test.jsonl", "c/dev.jsonl"))
    assert Config("m", [a, c], asr="none").sources == ["m", None, None, a, c]
    assert Config("m", [a, b], asr="none").sources == ["m", None, None, a, b, "list a-test", "list b-test"]
