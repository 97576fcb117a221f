"""Every bracket of numbers counted as a footnote: `The first primes are [2, 3, 5, 7].` lost the primes."""

import pytest

from lit_moss.prepare.adapt_pair import PairRejected
from lit_moss.prepare.adapt_rules import RuleAdapter

pytest.importorskip("markdown_it", reason="needs the extra `prepare`")
ENGLISH = [
    ("The first primes are [2, 3, 5, 7].", "The first primes are 2, 3, 5, 7."),
    ("It returns [1, 2, 3].", "It returns 1, 2, 3."),
    ("The answer is [42].", "The answer is 42."),
    ("x lies in [0, 1]. The value a[1] is 5.", "X lies in 0, 1. The value a1 is 5."),
    ("Sorting gives the list [1, 2].", "Sorting gives the list 1, 2."),
    ("Output: [1, 2].", "Output: 1, 2."),
    ("[1, 2, 3] is the list.", "1, 2, 3 is the list."),
    ("It sets data[1] = 5 there.", "It sets data1 equals 5 there."),
    ("This is true[1].", "This is true."),
    ("This is true.[1] It is [sic] so[2][3].", "This is true. It is so."),
    ("This is true. [1] However, it ended.", "This is true. However, it ended."),
    ("It grew to 12,000[3] in 2005[4].", "It grew to 12,000 in 2005."),
    ('He said "yes"[1] then.', "He said yes then."),
    ("This is **true**[12].", "This is true."),
    ("It is known [^1] and true [citation needed].", "It is known and true."),
]
CHINESE = [
    ("前几个质数是[2, 3, 5, 7]。", "前几个质数是2, 3, 5, 7。"),
    ("x在[0, 1]里。", "x在0, 1里。"),
    ("数组[1, 2, 3]的长度是三。", "数组1, 2, 3的长度是三。"),
    ("他说：[1, 2]。", "他说：1, 2。"),
    ("a[1]是5。", "a1是5。"),
    ("水是透明的[1]。", "水是透明的。"),
    ("水是透明的 [1]。它没有味道。[2]", "水是透明的。它没有味道。"),
    ("研究[3]表明如此。", "研究表明如此。"),
]


@pytest.mark.parametrize(
    ("question", "cases"), [("How is it?", ENGLISH), ("怎么样？", CHINESE)], ids=["en", "zh"]
)
def test_only_footnotes_are_left_out(question, cases):
    for written, said in cases:
        assert RuleAdapter().adapt(question, written).answer.text == said
        assert RuleAdapter().adapt(question, said).answer.text == said


def test_values_of_a_call_stay_in_a_question():
    pair = RuleAdapter().adapt("What does sorted([3, 1, 2]) return?", "A list in order.")
    assert pair.question.text == "What does sorted, 3, 1, 2, return?"


@pytest.mark.parametrize(
    "answer", ["Take [3, 4] and add them.", "See this [1] for more.", "研究[1,2]表明如此。"]
)
def test_what_may_be_either_is_refused(answer):
    with pytest.raises(PairRejected, match="footnote or list"):
        RuleAdapter().adapt("How is it?" if answer.isascii() else "怎么样？", answer)
