"""`比例尺1：10000` was read 一点十分零零零: a ratio with the full-width colon was a time."""

import pytest

from lit_moss.prepare.spoken import spoken

pytest.importorskip("wetext", reason="needs the extra `prepare`")
CASES = [
    ("比例尺1：10000", "比例尺一比一万"),
    ("比例1：100", "比例一比一百"),
    ("比分3：2", "比分三比二"),
    ("比例是1：1.5", "比例是一比一点五"),
    ("按1：2：3的比例", "按一比二比三的比例"),
    ("比例1：10", "比例一比十"),
    ("比例1:10", "比例一比十"),
    ("比分21:19", "比分二十一比十九"),
    ("以21：19获胜", "以二十一比十九获胜"),
    ("3:2", "三比二"),
    ("10：30", "十点三十分"),
    ("3：02", "三点零二分"),
    ("时间：10：30开始", "时间：十点三十分开始"),
    ("时间10：30：15", "时间十点三十分十五秒"),
]


@pytest.mark.parametrize(("written", "said"), CASES)
def test_they_are_no_times(written, said):
    assert spoken(written, "zh") == said
