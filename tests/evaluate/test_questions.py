"""Lists of questions in their published formats."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lit_moss.audio import io
from lit_moss.errors import UserError
from lit_moss.evaluate.questions import EMBEDDED, read_questions


def lines(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return str(path)


def test_our_lines(tmp_path):
    name = lines(
        tmp_path / "own.jsonl",
        {"id": "a", "question": "Who?", "answers": ["Me", "I"], "audio": "sounds/a.wav", "group": "new facts",
         "voice": "v1"},
        {"question": "谁？", "answer": "我"},
        {"question": "Who?", "answers": ["You"], "lang": "zh", "id": 7},
    )  # fmt: skip
    a, b, c = read_questions([name])
    assert (a.id, a.answers, a.group, a.voice, a.lang, a.source) == (
        "a", ("Me", "I"), "new facts", "v1", "en", "own",
    )  # fmt: skip
    assert a.audio == tmp_path / "sounds" / "a.wav"
    assert (b.id, b.answers, b.audio, b.lang) == ("own-00002", ("我",), None, "zh")
    assert (c.id, c.lang) == ("7", "zh")
    assert [q.lang for q in read_questions([name], lang="en")] == ["en"] * 3
    assert [q.id for q in read_questions([name, name], limit=1)] == ["a", "a-2"]


def test_llama_questions_has_carriage_returns_and_the_same_question_twice(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "7.wav").touch()
    path = tmp_path / "llama.tsv"
    path.write_bytes(
        b'Questions\tAnswer\tWav Filename\r\nWhat is "it"?\tTitan\t7.wav\r\nWhat?\tred, blue\t8.wav\r\n'
        b"What?\tred\t8.wav\r\n"
    )
    first, second, third = read_questions([str(path)])
    assert (first.question, first.answers, first.id) == ('What is "it"?', ("Titan",), "7")
    assert first.audio == tmp_path / "audio" / "7.wav"
    assert second.answers == ("red, blue",)
    assert third.id == "8-2"


@pytest.mark.parametrize(
    ("columns", "row", "answers"),
    [
        ("audio_filename,Questions,Answer", "a.mp3,Who?,Me", ("Me",)),
        ("audio_filename,question,answers", 'a.mp3,Who?,"[\'Me\', ""Mc\'Me""]"', ("Me", "Mc'Me")),
        ("audio_filename,question,answer_normalized_aliases", 'a.mp3,Who?,"[""me"", ""i""]"', ("me", "i")),
        ("audio_filename,Prompt,参考答案", "a.mp3,Who?,[sic] me", ("[sic] me",)),
        ("audio_filename,instruction,output", 'a.mp3,Who?,"Me,\nreally"', ("Me,\nreally",)),
    ],
)
def test_folders_of_openaudiobench(tmp_path, columns, row, answers):
    folder = tmp_path / "trivia_qa"
    (folder / "audios").mkdir(parents=True)
    (folder / "audios" / "a.mp3").touch()
    (folder / "trivia_qa.csv").write_text(f"\ufeff{columns}\n{row}\n")
    for name in (folder, folder / "trivia_qa.csv"):
        (question,) = read_questions([str(name)])
        assert (question.question, question.answers) == ("Who?", answers)
        assert question.audio == folder / "audios" / "a.mp3"


def test_parquet_with_sounds_inside(tmp_path):
    io.write(tmp_path / "tone.wav", 0.1 * torch.ones(1600), 16_000)
    sound = {"bytes": (tmp_path / "tone.wav").read_bytes(), "path": "x.wav"}
    pq.write_table(
        pa.Table.from_pylist([
            {"audio": sound, "question": "Who?", "answer": ["Me", "I"]},
            {"audio": sound, "question": "Where?", "answer": ["Here"]},
        ]), tmp_path / "test.parquet",
    )  # fmt: skip
    first, second = read_questions([str(tmp_path / "test.parquet")])
    assert (first.answers, second.answers) == (("Me", "I"), ("Here",))
    assert first.audio == second.audio
    assert len(io.read(first.audio, 16_000)) == 1600


def test_text_lists(tmp_path):
    trivia = lines(
        tmp_path / "trivia.jsonl",
        {"question": "Who?", "question_id": "tc_1", "answer": {"value": "Me", "aliases": ["Me", "I"],
         "normalized_aliases": ["me"]}},
    )  # fmt: skip
    original = tmp_path / "original.json"
    original.write_text(
        json.dumps(
            {"Data": [{"Question": "Who?", "QuestionId": "q", "Answer": {"Value": "Me", "Aliases": []}}]}
        )
    )
    web = tmp_path / "web.json"
    web.write_text(json.dumps([{"url": "u", "question": "Who?", "answers": ["Me"]}]))
    a, b, c = read_questions([trivia, str(original), str(web)])
    assert (a.id, a.answers) == ("tc_1", ("Me", "I", "me"))
    assert (b.id, b.answers) == ("q", ("Me",))
    assert (c.answers, c.source) == (("Me",), "web")


def test_the_shipped_list():
    questions = read_questions([EMBEDDED])
    assert [sum(q.lang == lang for q in questions) for lang in ("en", "zh")] == [16, 8]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", "", "holds no questions"),
        ("x.jsonl", '{"answers": ["a"]}\n', "line 1: neither question nor audio"),
        ("x.jsonl", '{"question": "Who?", "answers": ["", " "]}\n', "line 1: no answer for 'Who?'"),
        ("x.jsonl", '{"question": "Who?", "answers": ["a"], "lang": "fr"}', "lang is 'fr', expected en"),
        ("x.jsonl", '{"question": 3, "answers": ["a"]}\n', "question is 3, expected text"),
        ("x.jsonl", '{"question": "Who?", "answers": ["a"], "audio": 3}', "audio is '3', expected the path"),
        ("x.tsv", "a\tb\n1\t2\n", "row 1: neither question nor audio in a, b"),
        ("x.json", "3", "holds no list of objects"),
        ("x.json", "{", "is no JSON"),
        ("x.parquet", "3", "cannot be read"),
        ("x.wav", "3", "is no list of questions"),
    ],
)  # fmt: skip
def test_mistakes_in_lists_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_questions([str(tmp_path / name)])


def test_missing_lists_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no file .*none\.jsonl"):
        read_questions([str(tmp_path / "none.jsonl")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"0 \.csv files, expected one"):
        read_questions([str(tmp_path / "empty")])
