"""`于2023.5.6出生` was read as a version, `2023-12-31.` as a subtraction, and 减 stood between two dates."""

import pytest

from lit_moss.prepare.spoken import spoken

pytest.importorskip("wetext", reason="needs the extra `prepare`")
CASES = [
    ("于2023.5.6出生", "于二零二三年五月六日出生"),
    ("2023.12.31截止", "二零二三年十二月三十一日截止"),
    ("1990.10.1", "一九九零年十月一日"),
    ("2023-12-31.", "二零二三年十二月三十一日."),
    ("1990.10.1-1995.3.2", "一九九零年十月一日到一九九五年三月二日"),
    ("2023-05-06~2023-06-07", "二零二三年五月六日到二零二三年六月七日"),
    ("12/25/2023", "二零二三年十二月二十五日"),
    ("10.0.0.1", "十点零点零点一"),
    ("2023.13.1", "二零二三点十三点一"),
    ("2.0.1", "二点零点一"),
    ("版本2023.1.2", "版本二零二三点一点二"),
]


@pytest.mark.parametrize(("written", "said"), CASES)
def test_they_are_read_as_dates(written, said):
    assert spoken(written, "zh") == said
