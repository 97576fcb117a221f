"""Adapting made `100,000 – 200,000 people` two numbers and left `<` out of `two &lt; three`."""

import pytest

from lit_moss.prepare.adapt_rules import RuleAdapter

pytest.importorskip("markdown_it", reason="needs the extra `prepare`")
ENGLISH = [
    ("100,000 – 200,000 people.", "100,000 to 200,000 people."),
    ("It ran 100 &ndash; 200 km.", "It ran 100 to 200 km."),
    ("10—20 people.", "10 to 20 people."),
    ("10 -- 20 people.", "10 to 20 people."),
    ("1939 – 1945 it lasted.", "1939 to 1945 it lasted."),
    ("$5 – $10 each.", "$5 to $10 each."),
    ("5% – 10% of it.", "5% to 10% of it."),
    ("5 kg – 10 kg of it.", "5 kg to 10 kg of it."),
    ("9 am – 5 pm it is open.", "9 am to 5 pm it is open."),
    ("9:00 – 17:00 it is open.", "9:00 to 17:00 it is open."),
    ("1. Use 5 – 10 eggs.\n2. Use 2 – 3 cups.", "First, use 5 to 10 eggs. Second, use 2 to 3 cups."),
    ("5 – 3 = 2", "5 minus 3 equals 2."),
    ("x – 3 = 2", "X minus 3 equals 2."),
    ("1990–1995 was good.", "1990–1995 was good."),
    ("In 2020 – 3 years later – it was.", "In 2020, 3 years later, it was."),
    ("In 2020 – 3,000 people came.", "In 2020, 3,000 people came."),
    ("He came – 3 of them – late.", "He came, 3 of them, late."),
    ("Step 1 – 2 eggs are needed.", "Step 1, 2 eggs are needed."),
    ("One &amp; two &lt; three.", "One and two less than three."),
    ("Three &gt; two holds.", "Three greater than two holds."),
    ("If a &lt; b then c &gt; d.", "If a is less than b then c is greater than d."),
    ("Here p<0.05 holds.", "Here p less than 0.05 holds."),
    ("If n <3 it ends.", "If n less than 3 it ends."),
    ("It takes <3 days.", "It takes less than 3 days."),
    ("It needs >= 5 kg.", "It needs at least 5 kg."),
    ("It needs <= 5 kg.", "It needs at most 5 kg."),
    ("<5 kg and >3 kg are light.", "Less than 5 kg and more than 3 kg are light."),
    ("Thank you <3", "Thank you."),
    ("Use &lt;b&gt; to mark it.", "Use b to mark it."),
    ("Click File > Open now.", "Click File Open now."),
]
CHINESE = [
    ("人数是100 – 200人。", "人数是100到200人。"),
    ("100——200人。", "100到200人。"),
    ("2010年——2015年的人数。", "2010年到2015年的人数。"),
    ("步骤1——2个鸡蛋。", "步骤1，2个鸡蛋。"),
    ("如果a&lt;b，那么是对的。", "如果a小于b，那么是对的。"),
    ("温度 < 5 度的时候。", "温度小于5度的时候。"),
    ("数字>=5的时候。", "数字大于等于5的时候。"),
    ("文件 > 打开，然后点击。", "文件打开，然后点击。"),
]


@pytest.mark.parametrize(
    ("question", "cases"), [("How is it?", ENGLISH), ("怎么样？", CHINESE)], ids=["en", "zh"]
)
def test_numbers_keep_what_stands_between_them(question, cases):
    for written, said in cases:
        assert RuleAdapter().adapt(question, written).answer.text == said
        assert RuleAdapter().adapt(question, said).answer.text == said  # nothing more is changed
