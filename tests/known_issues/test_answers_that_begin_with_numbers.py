"""`1945. Germany surrendered.` lost its year: Markdown takes the number for that of a list with one item.
Years in lists were counted on (`1969.` after `1945.` was said as 1946), and a list with text between its
items had no ordinals.
"""

import pytest

from lit_moss.prepare.adapt_pair import problem_of
from lit_moss.prepare.adapt_rules import RuleAdapter

pytest.importorskip("markdown_it", reason="needs the extra `prepare`")
ENGLISH = [
    ("1945. Germany surrendered in May.", "1945. Germany surrendered in May."),
    ("42. Six groups of seven make forty-two.", "42. Six groups of seven make forty-two."),
    ("0. Nothing is left.", "0. Nothing is left."),
    ("2024. 12. 25 is the date.", "2024. 12. 25 is the date."),
    ("1. Germany surrendered.", "Germany surrendered."),
    ("- 1945. The war ended there.\n- 1969. Men walked on the moon there.",
     "First, 1945. The war ended there. Second, 1969. Men walked on the moon there."),
    ("1945. The war ended.\n1969. Men walked there.", "1945. The war ended. 1969. Men walked there."),
    ("1. one thing\n1. another thing", "First, one thing. Second, another thing."),
    ("3. Add the eggs.\n4. Stir.", "Third, add the eggs. Fourth, stir."),
    ("1. Mix the flour.\n\nIt takes a while.\n\n2. Add the eggs.",
     "First, mix the flour. It takes a while. Second, add the eggs."),
]  # fmt: skip
CHINESE = [
    ("1945. 那一年战争结束。", "1945。那一年战争结束。"),
    ("42、六乘以七是四十二。", "42。六乘以七是四十二。"),
    ("3、4月是旺季。", "3、4月是旺季。"),
    ("1、2024年开始。\n2、2025年结束。", "第一，2024年开始。第二，2025年结束。"),
]


@pytest.mark.parametrize(
    ("question", "cases"), [("How is it?", ENGLISH), ("怎么样？", CHINESE)], ids=["en", "zh"]
)
def test_they_keep_them(question, cases):
    for written, said in cases:
        assert RuleAdapter().adapt(question, written).answer.text == said
        assert RuleAdapter().adapt(question, said).answer.text == said


def test_numbers_of_questions_are_left_out():
    for written, said in [
        ("5. What is the capital of France?", "What is the capital of France?"),
        ("12、中国的首都是哪里？", "中国的首都是哪里？"),
        ("1945. What happened then?", "1945. What happened then?"),
    ]:
        assert (
            RuleAdapter().adapt(written, "It was so." if "What" in written else "北京。").question.text
            == said
        )


@pytest.mark.parametrize(
    "text", ["1. Boil it.", "2. Boil it.\n3. Stir it.", "Do this:\n2. Stir it.", "2) Stir."]
)
def test_lists_of_a_model_are_still_refused(text):
    assert problem_of(text, 100) is not None
