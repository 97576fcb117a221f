"""A row of ZeroSpeech's gold.csv with too few columns was a traceback."""

import pytest

from lit_moss.errors import UserError
from lit_moss.evaluate.cloze_sets import read_pairs


def test_it_is_refused_with_its_line(tmp_path):
    (tmp_path / "gold.csv").write_text("filename,id,voice,correct\na,1,v,1\n\nb,1,v,0\nc,2\n")
    with pytest.raises(UserError) as error:
        read_pairs(str(tmp_path), "gold")
    assert str(error.value) == (
        f"{tmp_path}/gold.csv, line 5: has 2 columns, expected 4: filename, id, voice, correct"
    )


def test_columns_behind_the_needed_ones_may_be_missing(tmp_path):
    (tmp_path / "gold.csv").write_text("filename,id,voice,correct,type\na,1,v,1\nb,1,v,0,x,extra\n")
    ((pair,),) = (one.pairs for one in read_pairs(str(tmp_path), "gold"))
    assert (pair.key, pair.group) == ("1", "")
