"""The Chinese zero was dropped from transcripts: 二〇二四年 became 二二四年."""

import pytest

from lit_moss.data.listening import word_errors as wrong_words
from lit_moss.data.transcripts import lost_letters, normalise
from lit_moss.evaluate.judges import word_errors


@pytest.mark.parametrize(
    ("written", "expected"),
    [("二〇二四年", "二零二四年"), ("二零二四年", "二零二四年"), ("〇", "零"), ("三 〇 a", "三零a")],
)
def test_it_is_the_usual_zero(written, expected):
    assert normalise(written) == expected
    assert normalise(expected) == expected
    assert lost_letters(written) == ""


def test_both_zeros_are_the_same_transcript():
    assert word_errors("二〇二四年", "二零二四年", "zh") == (0, 5)
    assert wrong_words("二〇二四年", "二零二四年")[0] == 0


def test_marks_of_repetition_stay_dropped_and_counted():
    """々 is of Japanese: keeping it would add a character to vocabularies of runs that exist."""
    assert normalise("人々") == "人"
    assert lost_letters("人々") == "々"


def test_every_script_keeps_it_as_it_is():
    assert normalise("二〇二四年", "auto") == "二〇二四年"
