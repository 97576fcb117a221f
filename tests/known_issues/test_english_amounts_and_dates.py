"""`1,000s of people` were one thousand seconds of people, `NZ$5` NZfive dollars, `$-5` dollars -five, and
`12-25-2023` a subtraction.
"""

import pytest

from lit_moss.prepare.spoken import spoken

pytest.importorskip("num2words", reason="needs the extra `prepare`")
CASES = [
    ("1,000s of people", "thousands of people"),
    ("100s of people", "hundreds of people"),
    ("1000s of people", "thousands of people"),
    ("10,000s of people", "tens of thousands of people"),
    ("5,000s of people", "five thousands of people"),
    ("for 100s of years", "for hundreds of years"),
    ("for 100s of silence", "for one hundred seconds of silence"),
    ("within 1,000s.", "within one thousand seconds."),
    ("the 1900s", "the nineteen hundreds"),
    ("NZ$5", "five New Zealand dollars"),
    ("CA$20", "twenty Canadian dollars"),
    ("S$5", "five Singapore dollars"),
    ("AU$5.50", "five Australian dollars and fifty cents"),
    ("NT$100", "one hundred New Taiwan dollars"),
    ("US$5", "five US dollars"),
    ("$-5", "minus five dollars"),
    ("$−5.5 million", "minus five point five million dollars"),
    ("€ -3.50", "minus three euros and fifty cents"),
    ("-$5", "minus five dollars"),
    ("$5-$10", "five to ten dollars"),
    ("12-25-2023", "December twenty-fifth, twenty twenty-three"),
    ("25-12-2023", "December twenty-fifth, twenty twenty-three"),
    ("12.25.2023", "December twenty-fifth, twenty twenty-three"),
    ("2023.12.31", "December thirty-first, twenty twenty-three"),
    ("12/25/2023", "December twenty-fifth, twenty twenty-three"),
    ("2023.1.2", "two thousand twenty-three point one point two"),
    ("12-31", "twelve to thirty-one"),
]
CHINESE = [
    ("NZ$5", "五新西兰元"),
    ("CA$20", "二十加元"),
    ("S$5", "五新加坡元"),
    ("AU$5", "五澳元"),
    ("US$5", "五美元"),
]


@pytest.mark.parametrize(("written", "said"), CASES)
def test_they_are_read_as_meant(written, said):
    assert spoken(written, "en") == said


@pytest.mark.parametrize(("written", "said"), CHINESE)
def test_dollars_of_other_countries_in_chinese(written, said):
    pytest.importorskip("wetext", reason="needs the extra `prepare`")
    assert spoken(written, "zh") == said
