"""`<` and `>` before a sign, a decimal point or a currency were left out: `must stay < -18 °C` was said as
`must stay -18 °C`. In Chinese so were `a>b` and whatever followed a comma.
"""

import pytest

from lit_moss.prepare.adapt_pair import PairRejected
from lit_moss.prepare.adapt_rules import RuleAdapter

pytest.importorskip("markdown_it", reason="needs the extra `prepare`")
ENGLISH = [
    ("The freezer must stay < -18 °C.", "The freezer must stay less than -18 °C."),
    ("Keep it at > -5 °C.", "Keep it at more than -5 °C."),
    ("It is cold (<−18 °C).", "It is cold, less than −18 °C."),
    ("It rises by > +5 percent.", "It rises by more than +5 percent."),
    ("Here p < .05 and q <.001 hold.", "Here p less than .05 and q less than .001 hold."),
    ("It costs < €5, or >£3.", "It costs less than €5, or more than £3."),
    ("It costs <¥5, or >$3 now.", "It costs less than ¥5, or more than $3 now."),
    ("It needs >= -5 and <= €5.", "It needs at least -5 and at most €5."),
    ("> 18 °C is warm.", "More than 18 °C is warm."),
    (">=5 kg is heavy.", "At least 5 kg is heavy."),
    ("If 20° < 30° it holds.", "If 20 degrees less than 30 degrees it holds."),
    ("Here a>b holds.", "Here a greater than b holds."),
    ("It costs ~$5, or ~.5 of it.", "It costs about $5, or about .5 of it."),
    ("5~10 people came.", "5 to 10 people came."),
    ("Click File > Open now.", "Click File Open now."),
    ("Use &lt;b&gt; to mark it.", "Use b to mark it."),
    ("> He said so.", "He said so."),
]
CHINESE = [
    ("冷冻室应<-18℃。", "冷冻室应小于-18℃。"),
    ("温度 > -5℃。", "温度大于-5℃。"),
    ("价格<¥100，>￥50。", "价格小于¥100，大于￥50。"),
    ("这里P<.05。", "这里P小于.05。"),
    ("如果a>b，甲>乙。", "如果a大于b，甲大于乙。"),
    ("准确率 > 召回率。", "准确率大于召回率。"),
    ("> 5度就是热。", "大于5度就是热。"),
    (">=5度就是热。", "大于等于5度就是热。"),
    ("价格约为~￥5。", "价格约为约￥5。"),
    ("5~10人。", "5到10人。"),
    ("文件 > 打开，然后点击。", "文件打开，然后点击。"),
    ("点击设置>通用>关于。", "点击设置通用关于。"),
    ("我喜欢<红楼梦>这本书。", "我喜欢红楼梦这本书。"),
]


@pytest.mark.parametrize(
    ("question", "cases"), [("How is it?", ENGLISH), ("怎么样？", CHINESE)], ids=["en", "zh"]
)
def test_they_are_said(question, cases):
    for written, said in cases:
        assert RuleAdapter().adapt(question, written).answer.text == said
        assert RuleAdapter().adapt(question, said).answer.text == said


@pytest.mark.parametrize(
    "answer", ["Hello <your name>, welcome.", "Paris > London", "Write x <- 5 there.", "前者<<后者。"]
)
def test_what_has_no_words_is_refused(answer):
    with pytest.raises(PairRejected, match="sign"):
        RuleAdapter().adapt("How is it?" if answer.isascii() else "怎么样？", answer)
