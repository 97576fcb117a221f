"""Normalises English number words for comparison: `twelve hundred` becomes `one thousand two hundred`."""

from collections.abc import Sequence

from lit_moss.prepare.english_numbers import DIGITS, MAX_DIGITS, cardinal, ordinal
from lit_moss.prepare.english_tables import MONTHS

_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_SMALL = {word: value for value, word in enumerate((*DIGITS, *_TEENS.split()))}
_DECADES = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_DECADES.split(), 2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_BIG = {"hundred", *_SCALES}
_DAYS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
_ORDINALS = {word: value for value, word in enumerate(_DAYS.split(), 1)} | {"thirtieth": 30}
_MONTHS = {name.lower() for name in MONTHS}
_MONEY = {"dollar", "dollars", "euro", "euros", "pound", "pounds"}
_MINOR = {"cent", "cents", "pence", "penny"}
_NUMBER_WORDS = {*_SMALL, *_TENS}


def folded_numbers(words: Sequence[str]) -> list[str]:
    """Number words in a normal form: cardinals without `and`, `a hundred` as `one hundred`, years as
    cardinals, days of a month as ordinals.

    Args:
        words: Lower-case words without hyphens (`twenty`, `one`).
    """
    words = _without_and(words)
    folded: list[str] = []
    place = 0
    while place < len(words):
        if place and words[place - 1] in _MONTHS:
            day, after = _day(words, place)
            if day:
                folded += ordinal(str(day)).split("-")
                place = after
                continue
        value, after = _number(words, place)
        if after == place:
            folded.append(words[place])
            place += 1
        else:
            folded += (
                cardinal(str(value)).replace("-", " ").split()
                if value < 10**MAX_DIGITS
                else words[place:after]
            )
            place = after
    return folded


def _day(words: Sequence[str], place: int) -> tuple[int | None, int]:
    """Day of a month (`twenty-second` or `twenty-two`), unless the number is a year."""
    tens = _TENS.get(words[place], 0)
    last = place + bool(tens)
    if last < len(words) and (tens + _ORDINALS.get(words[last], 99)) < 32:
        return tens + _ORDINALS[words[last]], last + 1
    value, after = _below_hundred(words, place)
    if not value or value > 31 or words[after : after + 1] == ["hundred"]:
        return None, place
    second, end = _below_hundred(words, after)
    if second and 10 <= value <= 20 and second >= 10 and not _below_hundred(words, end)[0]:
        return None, place  # May nineteen ninety
    return value, after


def _without_and(words: Sequence[str]) -> list[str]:
    result: list[str] = []
    for place, word in enumerate(words):
        before = result[-1] if result else ""
        after = words[place + 1] if place + 1 < len(words) else ""
        if word == "and" and before in _BIG and (after in _NUMBER_WORDS or after in _ORDINALS):
            continue
        if (
            word == "and"
            and before in _MONEY
            and after in _NUMBER_WORDS
            and _MINOR & {*words[place + 2 : place + 4]}
        ):
            continue
        if word == "a" and after in _BIG and before not in ("half", "quarter"):
            word = "one"
        if word == "oh" and (before in _NUMBER_WORDS or before == "zero") and after in _NUMBER_WORDS:
            word = "zero"
        result.append(word)
    return result


def _below_hundred(words: Sequence[str], place: int) -> tuple[int | None, int]:
    word = words[place] if place < len(words) else ""
    if word in _TENS:
        unit = _SMALL.get(words[place + 1], 0) if place + 1 < len(words) else 0
        return (_TENS[word] + unit, place + 2) if 1 <= unit <= 9 else (_TENS[word], place + 1)
    return (_SMALL[word], place + 1) if word in _SMALL else (None, place)


def _below_thousand(words: Sequence[str], place: int) -> tuple[int | None, int]:
    """Numbers up to 9999, as `ninety-nine hundred ninety-nine` or in pairs like years."""
    value, after = _below_hundred(words, place)
    if not value:
        return value, after
    if after < len(words) and words[after] == "hundred":
        rest, end = _below_hundred(words, after + 1)
        return (100 * value + rest, end) if rest else (100 * value, after + 1)
    if value >= 10:
        start = after + 1 if after < len(words) and words[after] == "zero" else after
        rest, end = _below_hundred(words, start)
        if rest and (rest >= 10 if start == after else rest < 10):
            return 100 * value + rest, end
    return value, after


def _number(words: Sequence[str], place: int) -> tuple[int, int]:
    """Value of the number that starts here, and the index after it; the same index if there is none."""
    total, last_scale = 0, 10**15
    start = place
    while True:
        value, after = _below_thousand(words, place)
        if value is None or (value == 0 and place > start):
            return total, place
        scale = _SCALES.get(words[after], 1) if after < len(words) else 1
        if scale >= last_scale or (last_scale < 10**15 and value >= last_scale):
            return total, place
        total += value * scale
        place, last_scale = after + (scale > 1), scale
        if scale == 1:
            return total, place
