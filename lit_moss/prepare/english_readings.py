"""Readings of what English rules match, as functions of a match."""

import re
import unicodedata

from lit_moss.prepare import english_numbers as numbers
from lit_moss.prepare.english_tables import (
    ABBREVIATIONS,
    AFTER_NAMES,
    MONEY,
    MONTHS,
    POWERS,
    SCALES,
    SHORT_MONTHS,
    UNITS,
)

Match = re.Match[str]


# --- dates and times ----------------------------------------------------------------------------------------


def date(month: str, day: str, year: str | None) -> str:
    """Month, ordinal day and year."""
    words = f"{month} {numbers.ordinal(day)}"
    return f"{words}, {numbers.year(year)}" if year else words


def month_name(name: str) -> str:
    """Full name of a month."""
    return SHORT_MONTHS.get(name.rstrip("."), name)


def iso_date(m: Match) -> str | None:
    """`2024-05-06`."""
    month, day = int(m["month"]), int(m["day"])
    return date(MONTHS[month - 1], m["day"], m["year"]) if 1 <= month <= 12 and 1 <= day <= 31 else None


def us_date(m: Match) -> str | None:
    """`5/6/2024`, month first unless it cannot be."""
    first, second, year = m["first"], m["second"], m["year"]
    if int(first) > 12:
        first, second = second, first
    if not (1 <= int(first) <= 12 and 1 <= int(second) <= 31):
        return None
    if len(year) == 2:
        year = ("19" if int(year) > 49 else "20") + year
    return date(MONTHS[int(first) - 1], second, year)


def month_day(m: Match) -> str | None:
    """`May 6, 1990`."""
    return date(month_name(m["month"]), m["day"], m["year"]) if 1 <= int(m["day"]) <= 31 else None


def day_month(m: Match) -> str | None:
    """`6 May 1990` and `14th June`."""
    if not 1 <= int(m["day"]) <= 31:
        return None
    year = f", {numbers.year(m['year'])}" if m["year"] else ""
    if m["th"]:  # 14th June: as written
        return f"{numbers.ordinal(m['day'])} {m['of'] or ''}{month_name(m['month'])}{year}"
    return f"{'' if m['the'] else 'the '}{numbers.ordinal(m['day'])} of {month_name(m['month'])}{year}"


def am_or_pm(letters: str) -> str:
    """`a.m.` -> AM, which voices spell."""
    return letters[0].upper() + "M"


def time(m: Match) -> str | None:
    """`10:30 am`, `14:05`."""
    hour, minute, second, half = int(m["hour"]), m["minute"], m["second"], m["half"]
    if hour > 24 or int(minute) > 59:
        return None
    words = numbers.cardinal(str(hour))
    if minute != "00":
        words += f" oh {numbers.cardinal(minute[1])}" if minute[0] == "0" else f" {numbers.cardinal(minute)}"
    elif not half:
        words += " o'clock" if 0 < hour < 13 else " hundred"
    if second:
        words += f" and {numbers.cardinal(str(int(second)))} second" + ("" if int(second) == 1 else "s")
    return f"{words} {am_or_pm(half)}" if half else words


_ENDS_A_TIME = re.compile(r"(?:\d ?[ap]\.?m\.?|\d:\d\d|noon|midnight) ?$", re.IGNORECASE)
_ENDS_IN_AN_HOUR = re.compile(r"(?<![\w.:])\d{1,2} ?$")


def until(m: Match) -> str | None:
    """The dash of `9:30-10 am`, `noon-1 p.m.` and `10-11 am`; None between other numbers."""
    before = m.string[max(0, m.start() - 10) : m.start()]
    if m["hour"] and before[-1:] == " ":
        return None  # woke at 5 am - 3 hours early
    return " to " if _ENDS_A_TIME.search(before) or (m["half"] and _ENDS_IN_AN_HOUR.search(before)) else None


# --- money, units, fractions --------------------------------------------------------------------------------


def is_one(number: str) -> bool:
    """Whether a unit after this number is singular."""
    return number.lstrip("+-−") == "1"


_ARTICLE = re.compile(r"\b[Aa]n? $")
_NOUN = re.compile(r"[ -](?!(?:for|in|of|on|or|and|to|a|per|more|less|each|was|is)\b)[a-z]+")


def money(m: Match) -> str:
    """`$1,234.50`, `£5m`, `$5-10`."""
    one, many, cent, cents = MONEY[m["sign"]]
    number, scale = m["number"], m["scale"]
    if _ARTICLE.search(m.string[: m.start()]) and _NOUN.match(m.string, m.end()):
        many = one  # a five dollar bill
    minus = "minus " if m["minus"] or m["minus_after"] else ""
    if m["upto"]:
        last = m["upto_scale"] or scale
        between = f"{numbers.cardinal(number)}{scale_word(scale if m['upto_scale'] else None)} to "
        return f"{minus}{between}{numbers.cardinal(m['upto'])}{scale_word(last)} {many}"
    if scale:
        return f"{minus}{numbers.cardinal(number)}{scale_word(scale)} {many}"
    whole, _, part = number.partition(".")
    if len(part) != 2:
        return f"{minus}{numbers.cardinal(number)} {one if is_one(number) else many}"
    words = f"{numbers.cardinal(whole or '0')} {one if whole == '1' else many}"
    if part == "00":
        return minus + words
    small = f"{numbers.cardinal(str(int(part)))} {cent if part == '01' else cents}"
    return minus + (small if whole in ("", "0") else f"{words} and {small}")


def scale_word(letters: str | None) -> str:
    """` million` for `m`; "" for None."""
    return f" {SCALES[letters]}" if letters else ""


def unit(m: Match) -> str | None:
    """`5 km/h`, `3-5 kg`, `100m²`."""
    many = not is_one(m["number"]) or m["first"] or m["scale"]
    first = f"{spoken_value(m['first'])} to " if m["first"] else ""
    scale = f" {m['scale']}" if m["scale"] else ""
    name = unit_name(m["unit"], m["power"], bool(many))
    if m["per"]:
        if m["per"] == "s" and m["per_power"]:
            name += " per second" + {"²": " squared", "2": " squared"}.get(
                m["per_power"].lstrip("^"), " cubed"
            )
        else:
            name += f" per {unit_name(m['per'], m['per_power'], many=False)}"
    return f"{first}{spoken_value(m['number'])}{scale} {name}"


def spoken_value(number: str) -> str:
    """A number that is not a year."""
    return numbers.cardinal(number)


def unit_name(unit: str, power: str | None, many: bool) -> str:
    """`square meters`."""
    words = UNITS[unit][many] if unit in UNITS else unit
    return f"{POWERS[power.lstrip('^')]} {words}" if power else words


def fraction(m: Match) -> str:
    """`3/4`, `2 1/2`."""
    part = numbers.fraction(m["above"], m["below"])
    if not m["whole"]:
        return part
    part = part.replace("one ", "a ", 1) if m["above"] == "1" and m["below"] == "2" else part
    return f"{numbers.cardinal(m['whole'])} and {part}"


def vulgar(m: Match) -> str:
    """`½`, `2½`."""
    above, _, below = unicodedata.normalize("NFKC", m["sign"]).partition("⁄")
    part = numbers.fraction(above, below)
    return f"{numbers.cardinal(m['whole'])} and {part.replace('one half', 'a half')}" if m["whole"] else part


def height(m: Match) -> str:
    """`5'11"`."""
    inches = f" {numbers.cardinal(m['inches'])}" if m["inches"] else ""
    return f"{numbers.cardinal(m['feet'])} {'foot' if inches else 'feet'}{inches}"


# --- other numbers ------------------------------------------------------------------------------------------


# Three and four digits with a hyphen are a phone number (555-0134). They are a range if no word such as
# "call" precedes, and both numbers are round (500-1500) or end in zeros before what is counted (480-1250
# words).
_ROUND = re.compile(r"\d(?:00|50)-[1-9]\d00")
_CALLED = re.compile(
    r"\b(?:call|dial|phone|tel|fax|text|ring|reach|contact|number|hotline)\b[^.!?]{0,24}$", re.IGNORECASE
)
_AMOUNT = re.compile(
    rf" ?(?:{'|'.join(map(re.escape, sorted(UNITS, key=len, reverse=True)))})(?!\w)"
    r"| (?:people|men|women|children|percent)\b"
    r"| (?!(?:was|has|does|always)\b)[a-z]{2,}(?<!s)(?<!u)(?<!i)s\b"
)


def phone(m: Match) -> str | None:
    """Reads digit by digit, with a pause between groups; None for a range.

    Ranges are, e.g., 100-2000, 500-1500 or 480-1250 words.
    """
    called = _CALLED.search(m.string[max(0, m.start() - 40) : m.start()])
    counted = re.fullmatch(r"\d\d0-[1-9]\d\d0", m[0]) and _AMOUNT.match(m.string, m.end())
    if re.fullmatch(r"\d{3}-\d000", m[0]) or (not called and (counted or _ROUND.fullmatch(m[0]))):
        return None
    groups: list[str] = re.findall(r"\d+", m[0])
    return ("plus " if m[0][0] == "+" else "") + ", ".join(numbers.digits(g) for g in groups)


def version(m: Match) -> str:
    """`v2.0.1`, `192.168.0.1`."""
    name = "version " if m["v"] else ""
    parts = m["parts"].split(".")
    if len(parts) == 4 and not m["v"]:
        return " dot ".join(numbers.coded(p) for p in parts)
    return name + " point ".join(numbers.cardinal(p) for p in parts) + (f" {m['rest']}" if m["rest"] else "")


_LONG_DIGITS = 12
_SPELLED = re.compile(
    r"\b(?:[Bb]ox|PIN|[Cc]ode|[Zz]ip|ZIP|[Ee]xt\.|[Ee]xtension|[Pp]assword|[Dd]ial|[Cc]all(?:ed|ing)?) $"
)
_IN = re.compile(r"\b(?:[Ii]n|[Yy]ear|[Ss]ince|[Uu]ntil|[Aa]bout|[Bb]y|[Ff]rom|\d,) $")
_ERA = re.compile(r",? (?:B\.?C|A\.?D|CE\b)")
_AFTER_YEAR = re.compile(r"[,.]|$| [A-Z][a-z]+| he\b| the\b")
_CALIBER = re.compile(r"[- ](?:[Cc]al|[Ss]pecial|[Mm]agnum|rifle|pistol|revolver)")
_COUNTED = re.compile(r" ([a-z]+)(?<!ss)(?<!us)(?<!is)s\b")


def plain_number(m: Match) -> str:
    """A year, a code or a cardinal, depending on the context."""
    number = m["number"]
    before = m.string[: m.start()]
    if m["sign"]:
        return numbers.cardinal(m["sign"] + number)
    if number.isdecimal() and len(number) > 2 and _SPELLED.search(before):
        return numbers.digits(number)
    if number.isdecimal() and len(number) >= _LONG_DIGITS and not number.endswith("000000"):
        return numbers.digits(number)  # of an order or a card: amounts have commas
    if len(number) == 3 and (
        _ERA.match(m.string, m.end()) or (_AFTER_YEAR.match(m.string, m.end()) and _IN.search(before))
    ):
        return numbers.coded(number)  # in 626
    if number[0] == "." and number[1] != "0" and _CALIBER.match(m.string, m.end()):
        return numbers.cardinal(number[1:])
    if not numbers.is_year(number):
        return numbers.cardinal(number)
    counted = _COUNTED.match(m.string, m.end())
    if counted and counted[1] not in ("wa", "ha", "doe", "alway", "perhap"):
        return numbers.cardinal(number)  # 1455 men is read differently from the year
    return numbers.year(number)


def number_range(m: Match) -> str:
    """`3-5`, `1990-95`."""
    first, last = m["first"], m["last"]
    if numbers.is_year(first) and (numbers.is_year(last) or len(last) == 2):
        end = (
            numbers.year(last)
            if len(last) == 4
            else numbers.coded(last)
            if last[0] != "0"
            else f"oh {numbers.digits(last[1])}"
        )
        return f"{numbers.year(first)} to {end}"
    return f"{spoken_value(first)} to {spoken_value(last)}"


_POWERS_OF_TEN = {
    "100": "hundreds", "1000": "thousands", "10000": "tens of thousands", "100000": "hundreds of thousands",
    "1000000": "millions", "1000000000": "billions",
}  # fmt: skip


def about_many(m: Match) -> str:
    """`1,000s of people` -> thousands of people, `5,000s` -> five thousands."""
    number = m["number"].replace(",", "")
    return _POWERS_OF_TEN.get(number) or numbers.plural(numbers.cardinal(number))


def score(m: Match) -> str:
    """`3:2`."""
    return f"{numbers.cardinal(m['first'])} to {numbers.cardinal(m['last'])}"


def power(m: Match) -> str:
    """`x^2`."""
    known = {"2": " squared", "3": " cubed"}
    base = numbers.cardinal(m["base"]) if m["base"][0].isdigit() else m["base"]
    exponent = m["exponent"]
    said = numbers.cardinal(exponent) if exponent.lstrip("-").isdecimal() else exponent
    return base + known.get(exponent, f" to the power of {said}")


def numeral(m: Match) -> str | None:
    """`Louis XIV`, `Chapter IV`."""
    value = numbers.roman(m["numeral"])
    if value is None:
        return None
    if m["ruler"]:
        return f"{m['ruler']} the {numbers.ordinal(str(value))}"
    return f"{m['numbered']} {numbers.cardinal(str(value))}"


def bare_numeral(m: Match) -> str | None:
    """`Rocky III`."""
    value = numbers.roman(m["numeral"])
    return numbers.cardinal(str(value)) if value else None


def single_number(m: Match) -> str:
    """Circled, superscript and other digits that are not decimal digits."""
    value = unicodedata.numeric(m[0])
    return (
        f" {numbers.cardinal(str(int(value)))} "
        if value == int(value)
        else f" {numbers.cardinal(str(value))} "
    )


# --- words with digits and signs ----------------------------------------------------------------------------


def mixed(m: Match) -> str:
    """A name with letters and digits: `A380`, `B2B`, `GPT-3.5`."""
    groups: list[str] = re.findall(r"\d+(?:\.\d+)+|\d+|[^\d-]+", m[0])
    said = (_in_name(g) if g[0].isdecimal() else g for g in groups)
    return " ".join(said).replace("_", " underscore ")


def _in_name(digits: str) -> str:
    if digits.count(".") > 1:
        return " point ".join(map(numbers.cardinal, digits.split(".")))  # iOS17.2.1
    return numbers.cardinal(digits) if "." in digits else numbers.coded(digits)


def scientific(m: Match) -> str:
    """`1.5e-3` -> one point five e minus three."""
    return f"{numbers.cardinal(m['number'])} {m['e']} {numbers.cardinal(m['exponent'])}"


_ADDRESS_SIGNS = {
    ".": " dot ", "/": " slash ", "@": " at ", "-": " dash ", "_": " underscore ", ":": " colon ",
    "?": " question mark ", "=": " equals ", "&": " and ", "#": " hash ", "%": " percent ", "+": " plus ",
    "~": " tilde ", "\\": " backslash ", ",": " comma ", ";": " semicolon ", "!": " exclamation mark ",
    "'": " ", "(": " ", ")": " ", "*": " star ", "$": " dollar ",
}  # fmt: skip


def address(m: Match) -> str:
    """Web and e-mail addresses and paths, sign by sign; `http://` is not read."""
    body = re.sub(r"^[a-z]+://", "", m[0]).rstrip("/") or m[0]
    body = re.sub(r"^www(?=\.)", "W W W", body)
    parts: list[str] = re.findall(r"\d+|[A-Za-z]+|.", body)
    return " ".join(
        numbers.coded(p) if p[0].isdecimal() else _ADDRESS_SIGNS.get(p, p) for p in parts if not p.isspace()
    )


def abbreviation(m: Match) -> str:
    """Keeps the full stop if it ends the sentence."""
    after = m.string[m.end() : m.end() + 3]
    ends = m[0].endswith(".") and (not after.strip() or (m[0] == "etc." and re.match(r"\s+[A-Z]", after)))
    return ABBREVIATIONS[m[0]] + ("." if ends else "")


def initials(m: Match) -> str:
    """`U.S.` -> U S."""
    letters = " ".join(c for c in m[0] if c.isalpha())
    if letters.lower() in ("a m", "p m"):
        letters = letters.replace(" ", "").upper()
    return letters + ("." if not m.string[m.end() :].strip("\"'”’) \n") else "")


def after_name(m: Match) -> str:
    """`Main St.`, `Smith Jr.`."""
    end = not m.string[m.end() :].strip("\"'”’) \n") and m[0].endswith(".")
    return AFTER_NAMES[m["short"]] + ("." if end else "")


def is_street(m: Match) -> bool:
    """Whether `Main St.` before a capital is a street: a capitalised word or a number precedes it."""
    before = m.string[: m.start()].split()
    return (
        bool(before)
        and m.string[m.start() - 1] == " "
        and before[-1][0].isupper()
        and bool(re.match(r"[A-Z][a-z]+$", before[-1]))
    )
