"""The number of an identity card was read as a telephone number and an amount, an order's as billions."""

import pytest

from lit_moss.prepare.spoken import spoken

CHINESE = [
    ("身份证110101199001011234", "身份证一一零一零一一九九零零一零一一二三四"),
    ("订单号202312250001。", "订单号二零二三一二二五零零零一。"),
    ("11010119900101123X", "一一零一零一一九九零零一零一一二三X"),
    ("1000000000000", "一万亿"),
    ("202312250001元", "两千零二十三亿一千二百二十五万零一元"),
    ("12345678901元", "一百二十三亿四千五百六十七万八千九百零一元"),
    ("13812345678", "幺三八幺二三四五六七八"),
    ("1000000001", "十亿零一"),
]
ENGLISH = [
    ("order 202312250001.", "order two zero two three one two two five zero zero zero one."),
    ("1000000000000", "one trillion"),
    (
        "202,312,250,001",
        "two hundred two billion three hundred twelve million two hundred fifty thousand one",
    ),
]


@pytest.mark.parametrize(("written", "said"), CHINESE)
def test_chinese(written, said):
    pytest.importorskip("wetext", reason="needs the extra `prepare`")
    assert spoken(written, "zh") == said


@pytest.mark.parametrize(("written", "said"), ENGLISH)
def test_english(written, said):
    pytest.importorskip("num2words", reason="needs the extra `prepare`")
    assert spoken(written, "en") == said
