"""English readings: `500-1500 words` was read digit by digit, as a phone number; ordinals of hundreds of
digits, and those with a space between thousands, were a traceback.
"""

import pytest

from lit_moss.prepare.spoken import spoken


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("500-1500 words", "five hundred to one thousand five hundred words"),
        ("about 200-1500 people", "about two hundred to one thousand five hundred people"),
        ("480-1250 calories", "four hundred eighty to one thousand two hundred fifty calories"),
        ("150-1250 km", "one hundred fifty to one thousand two hundred fifty kilometers"),
        ("500-1500", "five hundred to one thousand five hundred"),
        # Phone numbers stay.
        ("555-1234 was busy", "five five five, one two three four was busy"),
        ("Call 800-1200 now", "Call eight zero zero, one two zero zero now"),
        ("My number is 555-1200.", "My number is five five five, one two zero zero."),
        ("800-555-1200", "eight zero zero, five five five, one two zero zero"),
        ("the 1\u00a0000th one", "the one thousandth one"),
        ("the 1,000th one", "the one thousandth one"),
    ],
)
def test_readings(text, said):
    assert spoken(text, "en") == said


@pytest.mark.parametrize("digits", [16, 400, 5000])
def test_an_ordinal_of_many_digits_is_said_digit_by_digit(digits):
    assert spoken("2" * digits + "nd", "en") == "two " * (digits - 1) + "second"
