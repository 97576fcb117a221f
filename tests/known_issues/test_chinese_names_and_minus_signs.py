"""`歼-20` was read 歼负二十, and `气温−5度`, with the sign of mathematics, 气温减五度."""

import pytest

from lit_moss.data.interleave import join_words
from lit_moss.prepare.spoken import spoken, spoken_words

pytest.importorskip("wetext", reason="needs the extra `prepare`")
CASES = [
    ("歼-20，东风-41，苏-27", "歼二十，东风四十一，苏二十七"),
    ("歼−20和歼‑16", "歼二十和歼十六"),
    ("东风-21D", "东风二一D"),
    ("长征-5号", "长征五号"),
    ("运-20架", "运二十架"),
    ("图-160", "图一百六十"),
    ("最低气温−5度", "最低气温负五度"),
    ("最低气温-5度", "最低气温负五度"),
    ("最低气温－5度", "最低气温负五度"),
    ("江苏-5度", "江苏负五度"),
    ("气温 −5 度", "气温负五度"),
    ("，−5度", "负五度"),
    ("下降−5", "下降负五"),
    ("−5到5度", "负五到五度"),
    ("5−3", "五减三"),
    ("x−3", "x减三"),
    ("−5℃", "负五摄氏度"),
    ("$-5", "负五美元"),
    ("￥−5万", "负五万元"),
]


@pytest.mark.parametrize(("written", "said"), CASES)
def test_a_hyphen_is_no_minus_and_a_minus_is_one(written, said):
    assert spoken(written, "zh") == said
    pairs = spoken_words(written, "zh")
    assert join_words([word for _, words in pairs for word in words]) == said
