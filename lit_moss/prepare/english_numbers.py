"""English numbers as words, using num2words: American style (`one hundred five`), without commas."""

import re
from functools import lru_cache

from lit_moss.errors import UserError

MAX_DIGITS = 15  # longer numbers are said digit by digit
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_FRACTIONS = {"2": ("half", "halves"), "4": ("quarter", "quarters")}


@lru_cache(maxsize=4096)
def _words(value: int, kind: str) -> str:
    try:
        from num2words import num2words
    except ImportError as error:
        message = "spoken numbers need num2words: pip install 'lit-moss[prepare]'"
        raise UserError(message) from error
    return re.sub(r",| and\b", "", num2words(value, to=kind))


def digits(text: str) -> str:
    """`555` -> five five five; other characters are ignored."""
    return " ".join(DIGITS[int(c)] for c in text if c.isdecimal())


def cardinal(number: str) -> str:
    """`1,234.50` -> one thousand two hundred thirty-four point five zero; `-5` -> minus five.

    Leading zeros are spoken: `007` -> zero zero seven.
    """
    sign = "minus " if number[0] in "-−" else "plus " if number[0] == "+" else ""
    whole = number.lstrip("+-−")
    whole, _, decimals = re.sub("[,\\s]", "", whole).partition(".")
    if len(whole) > MAX_DIGITS or (len(whole) > 1 and whole[0] == "0"):
        words = digits(whole)
    else:
        words = _words(int(whole or "0"), "cardinal")
    return sign + words + (f" point {digits(decimals)}" if decimals else "")


def ordinal(number: str) -> str:
    """`22` -> twenty-second; the digits of numbers longer than `MAX_DIGITS` are said one by one."""
    whole = re.sub("[,\\s]", "", number)
    if len(whole) > MAX_DIGITS:
        return f"{digits(whole[:-1])} {_words(int(whole[-1]), 'ordinal')}"
    return _words(int(whole), "ordinal")


def year(number: str) -> str:
    """`1905` -> nineteen oh five, `2004` -> two thousand four, `2010` -> twenty ten."""
    value = int(number)
    if not 1000 < value < 3000 or value in (2000,) or 2000 < value < 2010:
        return cardinal(number)
    century, rest = divmod(value, 100)
    if rest == 0:
        return cardinal(number) if century % 10 == 0 else f"{_words(century, 'cardinal')} hundred"
    start = _words(century, "cardinal")
    return f"{start} oh {DIGITS[rest]}" if rest < 10 else f"{start} {_words(rest, 'cardinal')}"


def is_year(number: str) -> bool:
    """Whether a four-digit number is usually read in pairs: 1100 to 2099."""
    return len(number) == 4 and number.isdecimal() and 1100 <= int(number) < 2100


def plural(words: str) -> str:
    """`ninety` -> nineties, `hundred` -> hundreds."""
    return words[:-1] + "ies" if words.endswith("y") else words + ("es" if words.endswith("x") else "s")


def decade(number: str) -> str:
    """`1990` -> nineteen nineties, `80` -> eighties, `2000` -> two thousands, `1900` -> nineteen hundreds."""
    if len(number) == 2:
        return "two thousands" if number == "00" else plural(cardinal(number))
    return plural(year(number) if is_year(number) or len(number) == 3 else cardinal(number))


def fraction(above: str, below: str) -> str:
    """`3`, `4` -> three quarters; `7`, `120` -> seven over one hundred twenty."""
    over, under = int(above), int(below)
    if under < 2 or under > 100 or len(above) > 3:
        return f"{cardinal(above)} over {cardinal(below)}"
    part = ordinal(below).removeprefix("one ")
    one, many = _FRACTIONS.get(below.lstrip("0"), (part, plural(part)))
    return f"{cardinal(above)} {one if over == 1 else many}"


def roman(numeral: str) -> int | None:
    """Value of a Roman numeral up to 399 in standard spelling, otherwise None."""
    match = re.fullmatch(r"C{0,3}(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})", numeral)
    if not numeral or not match:
        return None
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
    total = 0
    for here, after in zip(numeral, numeral[1:] + "I", strict=True):
        total += -values[here] if values[here] < values[after] else values[here]
    return total


def coded(group: str) -> str:
    """Digits within a name: `19` -> nineteen, `380` -> three eighty, `305` -> three oh five."""
    if group[0] == "0" or len(group) > 3:
        return digits(group)
    if len(group) < 3 or group.endswith("00"):
        return cardinal(group)
    rest = f"oh {DIGITS[int(group[2])]}" if group[1] == "0" else cardinal(group[1:])
    return f"{DIGITS[int(group[0])]} {rest}"
