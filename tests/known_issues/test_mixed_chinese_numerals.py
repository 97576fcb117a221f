"""Digits beside several Chinese units were read one by one: 3亿5000万 was 30000000050000000."""

import pytest

from lit_moss.evaluate.matching import match_norm, norm_tokens, word_errors

pytest.importorskip("cn2an", reason="needs the extra `evaluate`")
NUMBERS = {
    "3亿5000万": "350000000",
    "3 亿 5000 万": "350000000",
    "3亿五千万": "350000000",
    "14亿1000万": "1410000000",
    "1亿零500万": "105000000",
    "1万5千": "15000",
    "两万5千": "25000",
    "1万5": "15000",  # as 一万五
    "1万零5": "10005",
    "1万500": "10500",
    "2百5": "250",
    "2千5百万": "25000000",
    "2万3千4百5十6": "23456",
    "5千万": "50000000",
    "1.5千万": "15000000",
    "3万亿": "3000000000000",
    "3万5千亿": "3500000000000",
    "1.3亿": "130000000",
    "0.5万": "5000",
    "一点五亿": "150000000",
}


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_they_are_one_number(text, number):
    assert norm_tokens(f"共有{text}人", "zh") == ["共", "有", number, "人"]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [("大约3亿5000万人", "三亿五千万"), ("大约3亿5000万人", "3.5亿"), ("共有1万5千人", "15000"),
     ("共有1万5千人", "一万五千"), ("14亿1000万", "14.1亿"), ("3万亿元", "三万亿")],
)  # fmt: skip
def test_they_match_however_they_are_written(reply, answer):
    assert match_norm(reply, [answer], "zh")
    assert match_norm(answer, [reply.strip("大约共有人元")], "zh")


def test_what_makes_no_sum_stays_apart():
    assert norm_tokens("3万5万", "zh") == ["30000", "50000"]
    assert norm_tokens("3亿50000万", "zh") == ["300000000", "500000000"]
    assert norm_tokens("3亿, 5000万", "zh") == ["300000000", "50000000"]
    assert norm_tokens("12千瓦", "zh") == ["12", "千", "瓦"]  # kilowatts
    assert norm_tokens("360百科", "zh") == ["360", "百", "科"]
    assert norm_tokens("2024年3万20千瓦", "zh") == ["2024", "年", "30000", "20", "千", "瓦"]


def test_other_numbers_are_still_other_numbers():
    assert not match_norm("大约3亿5000万人", ["3亿"], "zh")
    assert not match_norm("大约3亿人", ["三亿五千万"], "zh")
    assert word_errors("三亿五千万人", "3亿5000万人", "zh") == (0, 2)
