"""The report's table of kinds of pairs gave accuracies of few pairs without their intervals."""

from lit_moss.evaluate.cloze_options import METHODS, Config
from lit_moss.evaluate.cloze_report import Outcome, summary
from lit_moss.evaluate.cloze_scorer import Item
from lit_moss.evaluate.cloze_sets import Pair, Part


def test_each_kind_has_one():
    outcomes = []
    for number in range(20):
        pair = Pair(str(number), Part(), Part(), None, str(number), "topic" if number < 10 else "story")
        right = dict.fromkeys(METHODS, float(number % 2))
        outcomes.append(Outcome(Item("set", pair, "text-text"), right, {}, 0.5, (1.0, 1)))
    _, report, *_ = summary(Config("m", ["x"]), outcomes)
    assert "| set | text-text | topic | 10 | 0.500 | 0.237 to 0.763 |" in report  # Wilson's, of 5 in 10
