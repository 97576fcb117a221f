"""The second of two things was left out without a word: a row of a gold.csv with the id, voice and
correctness of another, and a voice of one question; a rung given twice was counted as two clips."""

import pytest

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.evaluate import paralinguistics, resynthesis
from lit_moss.evaluate.cloze_sets import read_pairs

ROWS = ["a,1,v,1", "b,1,v,0", "c,2,v,1", "d,2,v,0"]


def gold(folder, rows):
    (folder / "gold.csv").write_text("\n".join(["filename,id,voice,correct", *rows]))
    return read_pairs(str(folder), "gold")


def test_a_second_row_of_a_side_is_named(tmp_path):
    (one,) = gold(tmp_path, ROWS)
    assert [pair.id for pair in one.pairs] == ["1-v", "2-v"]
    with pytest.raises(UserError, match=r"gold\.csv, line 6: id 1, voice v has another row with correct 0"):
        gold(tmp_path, [*ROWS, "e,1,v,0"])


def test_one_question_has_one_voice(capsys):
    voices = ["--voice", "a=a.wav", "--voice", "b=b.wav"]
    assert main(["chat", "--model", "no-such-model", "--text", "Hi", "--out", "x.wav", *voices]) == 2
    assert "--voice is given 2 times" in capsys.readouterr().err


@pytest.mark.parametrize("config", [resynthesis.Config, paralinguistics.Config])
def test_each_rung_is_given_once(config):
    with pytest.raises(UserError, match="expected each once"):
        config(clips="x", codec="y", rungs=["codec", "codec"])
