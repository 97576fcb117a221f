"""References and transcripts in one form."""

import pytest

from lit_moss.prepare.scoring import error_counts, scoring_form

SAME = [
    ("two point five percent", "2.5%"),
    ("10:30 am", "ten thirty a.m."),
    ("10:30 AM.", "10:30 a.m."),
    ("St. Paul", "Saint Paul"),
    ("Main St.", "Main Street"),
    ("twelve hundred", "1,200"),
    ("a hundred and five", "105"),
    ("one hundred and five", "one hundred five"),
    ("one thousand, four hundred fifty-five men", "1455 men"),
    ("fourteen fifty-five", "1455"),
    ("In nineteen oh five.", "in 1905"),
    ("two thousand and four", "2004"),
    ("twenty-one", "twenty one"),
    ("one hundred and first", "101st"),
    ("a U.S. ship", "a US ship"),
    ("Okay, Mr. X!", "OK mister X"),
    ("$5 million", "five million dollars"),
    ("$21.45", "twenty-one dollars forty-five cents"),
    ("November 22, 1963", "November twenty-two, nineteen sixty-three"),
    ("May 1963", "May nineteen sixty-three"),
    ("50", "fifty"),
    ("5 1/2", "five and a half"),
    ("per cent", "percent"),
    ("it's “fine”", "it's fine"),
]
SAME_CHINESE = [
    ("2024年", "二零二四年"),
    ("看著甚麼", "看着什么"),
    ("他說：「兩個人」。", "他说2个人"),
    ("百分之二十五", "25%"),
    ("13812345678", "一三八一二三四五六七八"),
    ("用 iPhone 拍", "用iphone拍"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_english_forms_agree(one, other):
    assert scoring_form(one, "en") == scoring_form(other, "en")
    assert error_counts(one, other, "en")[0] == 0


@pytest.mark.parametrize(("one", "other"), SAME_CHINESE)
def test_chinese_forms_agree(one, other):
    assert scoring_form(one, "zh") == scoring_form(other, "zh")


@pytest.mark.parametrize(
    ("one", "other"), [("1905", "1906"), ("$5", "5"), ("this and that", "this that"), ("第一", "第二")]
)
def test_differences_stay(one, other):
    lang = "zh" if one[0] == "第" else "en"
    assert error_counts(one, other, lang)[0] > 0


def test_edits_and_words_of_the_reference_are_counted():
    assert error_counts("one cat sat", "a cat sat down", "en") == (2, 3)
    assert error_counts("今天很好", "今天好", "zh") == (1, 4)
    assert error_counts("用iPhone拍", "用iPad拍", "zh") == (1, 3)
    assert error_counts("…", "well", "en") == (1, 0)
