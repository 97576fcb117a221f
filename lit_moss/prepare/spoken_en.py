"""English text as a voice says it: rules for numbers, money, units, dates, abbreviations and symbols.

What stays as written: words, upper-case acronyms (voices spell or read them themselves), punctuation.
"""

import re
import unicodedata
from collections.abc import Sequence

from lit_moss.prepare import english_numbers as numbers
from lit_moss.prepare.english_tables import (
    ABBREVIATIONS,
    AFTER_NAMES,
    ALWAYS_TITLES,
    BEFORE_NUMBERS,
    DOMAINS,
    GREEK,
    MONEY,
    MONTHS,
    NUMBERED,
    POWERS,
    RULERS,
    SCALES,
    SHORT_MONTHS,
    SYMBOLS,
    TITLES,
    UNITS,
)
from lit_moss.prepare.spoken_rules import Piece, Rule, Unit, rule, scan, units, unknown_characters

Match = re.Match[str]


def _any(words: Sequence[str]) -> str:
    return "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True))


WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
NUMBER = rf"(?:{WHOLE}(?:\.\d+)?|\.\d+)"
SIGN = r"(?:(?<![\w.)%$€£¥])[-−+])?"
DASH = r" ?[-–—] ?| to "
SCALE = r"hundred|thousand|million|billion|trillion|mn|bn|tn|[kKmMbBtT]"
BEFORE = r"(?<![\w.])(?<!\d,)"  # a number starts here
AFTER = r"(?!\w|[.,]\d)"  # and ends here
MONTH = rf"(?:{'|'.join(MONTHS)}|(?:{'|'.join(SHORT_MONTHS)})\b\.?)"
SECONDS = r"for |ter |ery |hin "  # (af)ter, (ev)ery, (wit)hin 30s


# --- dates and times -----------------------------------------------------------------------------------


def _date(month: str, day: str, year: str | None) -> str:
    words = f"{month} {numbers.ordinal(day)}"
    return f"{words}, {numbers.year(year)}" if year else words


def _month(name: str) -> str:
    return SHORT_MONTHS.get(name.rstrip("."), name)


def _iso_date(m: Match) -> str | None:
    month, day = int(m["month"]), int(m["day"])
    return _date(MONTHS[month - 1], m["day"], m["year"]) if 1 <= month <= 12 and 1 <= day <= 31 else None


def _us_date(m: Match) -> str | None:
    first, second, year = m["first"], m["second"], m["year"]
    if int(first) > 12:
        first, second = second, first
    if not (1 <= int(first) <= 12 and 1 <= int(second) <= 31):
        return None
    if len(year) == 2:
        year = ("19" if int(year) > 49 else "20") + year
    return _date(MONTHS[int(first) - 1], second, year)


def _month_day(m: Match) -> str | None:
    return _date(_month(m["month"]), m["day"], m["year"]) if 1 <= int(m["day"]) <= 31 else None


def _day_month(m: Match) -> str | None:
    if not 1 <= int(m["day"]) <= 31:
        return None
    year = f", {numbers.year(m['year'])}" if m["year"] else ""
    if m["th"]:  # 14th June: as written
        return f"{numbers.ordinal(m['day'])} {m['of'] or ''}{_month(m['month'])}{year}"
    return f"{'' if m['the'] else 'the '}{numbers.ordinal(m['day'])} of {_month(m['month'])}{year}"


def _half_of_day(letters: str) -> str:
    return letters[0].upper() + "M"


def _time(m: Match) -> str | None:
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
    return f"{words} {_half_of_day(half)}" if half else words


# --- money, units, fractions ---------------------------------------------------------------------------


def _is_one(number: str) -> bool:
    return number.lstrip("+-−") == "1"


def _money(m: Match) -> str:
    one, many, cent, cents = MONEY[m["sign"]]
    number, scale = m["number"], m["scale"]
    minus = "minus " if m["minus"] else ""
    if m["upto"]:
        last = m["upto_scale"] or scale
        between = f"{numbers.cardinal(number)}{_scale(scale if m['upto_scale'] else None)} to "
        return f"{minus}{between}{numbers.cardinal(m['upto'])}{_scale(last)} {many}"
    if scale:
        return f"{minus}{numbers.cardinal(number)}{_scale(scale)} {many}"
    whole, _, part = number.partition(".")
    if len(part) != 2:
        return f"{minus}{numbers.cardinal(number)} {one if _is_one(number) else many}"
    words = f"{numbers.cardinal(whole or '0')} {one if whole == '1' else many}"
    if part == "00":
        return minus + words
    small = f"{numbers.cardinal(str(int(part)))} {cent if part == '01' else cents}"
    return minus + (small if whole in ("", "0") else f"{words} and {small}")


def _scale(letters: str | None) -> str:
    return f" {SCALES[letters]}" if letters else ""


def _unit(m: Match) -> str | None:
    many = not _is_one(m["number"]) or m["first"] or m["scale"]
    first = f"{_value(m['first'])} to " if m["first"] else ""
    scale = f" {m['scale']}" if m["scale"] else ""
    name = _unit_name(m["unit"], m["power"], bool(many))
    if m["per"]:
        name += f" per {_unit_name(m['per'], m['per_power'], many=False)}"
    return f"{first}{_value(m['number'])}{scale} {name}"


def _value(number: str) -> str:
    """A number that is no year."""
    return numbers.cardinal(number)


def _unit_name(unit: str, power: str | None, many: bool) -> str:
    words = UNITS[unit][many] if unit in UNITS else unit
    return f"{POWERS[power.lstrip('^')]} {words}" if power else words


def _fraction(m: Match) -> str:
    part = numbers.fraction(m["above"], m["below"])
    if not m["whole"]:
        return part
    part = part.replace("one ", "a ", 1) if m["above"] == "1" and m["below"] == "2" else part
    return f"{numbers.cardinal(m['whole'])} and {part}"


def _vulgar(m: Match) -> str:
    above, _, below = unicodedata.normalize("NFKC", m["sign"]).partition("⁄")
    part = numbers.fraction(above, below)
    return f"{numbers.cardinal(m['whole'])} and {part.replace('one half', 'a half')}" if m["whole"] else part


def _height(m: Match) -> str:
    inches = f" {numbers.cardinal(m['inches'])}" if m["inches"] else ""
    return f"{numbers.cardinal(m['feet'])} {'foot' if inches else 'feet'}{inches}"


# --- other numbers -------------------------------------------------------------------------------------


def _phone(m: Match) -> str | None:
    if re.fullmatch(r"\d{3}-\d000", m[0]):
        return None
    groups = re.findall(r"\d+", m[0])
    return ("plus " if m[0][0] == "+" else "") + ", ".join(numbers.digits(g) for g in groups)


def _version(m: Match) -> str:
    name = "version " if m["v"] else ""
    parts = m["parts"].split(".")
    if len(parts) == 4 and not m["v"]:
        return " dot ".join(numbers.coded(p) for p in parts)
    return name + " point ".join(numbers.cardinal(p) for p in parts) + (f" {m['rest']}" if m["rest"] else "")


_SPELLED = re.compile(r"\b(?:[Bb]ox|PIN|[Cc]ode|[Zz]ip|ZIP|[Ee]xt\.|[Ee]xtension|[Pp]assword|[Dd]ial) $")
_IN = re.compile(r"\b(?:[Ii]n|[Yy]ear|[Ss]ince|[Uu]ntil|[Aa]bout|[Bb]y|[Ff]rom|\d,) $")
_ERA = re.compile(r",? (?:B\.?C|A\.?D|CE\b)")
_AFTER_YEAR = re.compile(r"[,.]|$| [A-Z][a-z]+| he\b| the\b")
_CALIBER = re.compile(r"[- ](?:[Cc]al|[Ss]pecial|[Mm]agnum|rifle|pistol|revolver)")
_COUNTED = re.compile(r" ([a-z]+)(?<!ss)(?<!us)(?<!is)s\b")


def _plain_number(m: Match) -> str:
    number = m["number"]
    before = m.string[: m.start()]
    if m["sign"]:
        return numbers.cardinal(m["sign"] + number)
    if number.isdecimal() and len(number) > 2 and _SPELLED.search(before):
        return numbers.digits(number)
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
        return numbers.cardinal(number)  # 1455 men is read otherwise than the year
    return numbers.year(number)


def _range(m: Match) -> str:
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
    return f"{_value(first)} to {_value(last)}"


def _score(m: Match) -> str:
    return f"{numbers.cardinal(m['first'])} to {numbers.cardinal(m['last'])}"


def _power(m: Match) -> str:
    known = {"2": " squared", "3": " cubed"}
    base = numbers.cardinal(m["base"]) if m["base"][0].isdigit() else m["base"]
    exponent = m["exponent"]
    said = numbers.cardinal(exponent) if exponent.lstrip("-").isdecimal() else exponent
    return base + known.get(exponent, f" to the power of {said}")


def _numeral(m: Match) -> str | None:
    value = numbers.roman(m["numeral"])
    if value is None:
        return None
    if m["ruler"]:
        return f"{m['ruler']} the {numbers.ordinal(str(value))}"
    return f"{m['numbered']} {numbers.cardinal(str(value))}"


def _bare_numeral(m: Match) -> str | None:
    value = numbers.roman(m["numeral"])
    return numbers.cardinal(str(value)) if value else None


def _single_number(m: Match) -> str:
    """Circled, superscript and other digits that are no decimals."""
    value = unicodedata.numeric(m[0])
    return (
        f" {numbers.cardinal(str(int(value)))} "
        if value == int(value)
        else f" {numbers.cardinal(str(value))} "
    )


# --- words with digits and signs -----------------------------------------------------------------------


def _mixed(m: Match) -> str:
    groups = re.findall(r"\d+|[^\d-]+", m[0])
    return " ".join(numbers.coded(g) if g[0].isdecimal() else g for g in groups)


_ADDRESS_SIGNS = {
    ".": " dot ", "/": " slash ", "@": " at ", "-": " dash ", "_": " underscore ", ":": " colon ",
    "?": " question mark ", "=": " equals ", "&": " and ", "#": " hash ", "%": " percent ", "+": " plus ",
    "~": " tilde ", "\\": " backslash ", ",": " comma ", ";": " semicolon ", "!": " exclamation mark ", "'": " ",
    "(": " ", ")": " ", "*": " star ", "$": " dollar ",
}  # fmt: skip


def _address(m: Match) -> str:
    """Web and mail addresses and paths, sign by sign; `http://` is left to the listener."""
    body = re.sub(r"^[a-z]+://", "", m[0]).rstrip("/") or m[0]
    body = re.sub(r"^www(?=\.)", "W W W", body)
    parts = re.findall(r"\d+|[A-Za-z]+|.", body)
    return " ".join(
        numbers.coded(p) if p[0].isdecimal() else _ADDRESS_SIGNS.get(p, p) for p in parts if not p.isspace()
    )


def _abbreviation(m: Match) -> str:
    """A full stop stays where the sentence ends with it."""
    after = m.string[m.end() : m.end() + 3]
    ends = m[0].endswith(".") and (not after.strip() or (m[0] == "etc." and re.match(r"\s+[A-Z]", after)))
    return ABBREVIATIONS[m[0]] + ("." if ends else "")


def _initials(m: Match) -> str:
    """`U.S.` -> U S."""
    letters = " ".join(c for c in m[0] if c.isalpha())
    if letters.lower() in ("a m", "p m"):
        letters = letters.replace(" ", "").upper()
    return letters + ("." if not m.string[m.end() :].strip("\"'”’) \n") else "")


def _after_name(m: Match) -> str:
    end = not m.string[m.end() :].strip("\"'”’) \n") and m[0].endswith(".")
    return AFTER_NAMES[m["short"]] + ("." if end else "")


# --- the rules -----------------------------------------------------------------------------------------

_UNIT = _any(list(UNITS))
_PER = _any([*UNITS, "day", "week", "month", "year", "hour", "minute", "second", "person", "night", "user"])

NUMBER_RULES = [
    rule(r"\+\d{1,3}(?:[ -.]?\(\d{1,4}\))?(?:[ -.]?\d{2,5}){1,5}(?![\w])(?<=\d{4})", _phone),
    rule(r"(?:1[ -.])?\(\d{3}\) ?\d{3}[-. ]\d{4}(?!\w)", _phone),
    rule(r"(?<![\w.-])(?:1[-.])?(?:\d{3}[-.]){1,2}(?<=-)\d{4}(?![\w-])", _phone),
    rule(r"(?<![\w.-])\d{3}\.\d{3}\.\d{4}(?![\w-])", _phone),
    rule(rf"{BEFORE}(?P<year>\d{{4}})(?P<dash>[-/])(?P<month>\d{{1,2}})(?P=dash)(?P<day>\d{{1,2}}){AFTER}", _iso_date),
    rule(rf"{BEFORE}(?P<first>\d{{1,2}})/(?P<second>\d{{1,2}})/(?P<year>\d{{4}}|\d\d){AFTER}", _us_date),
    rule(
        rf"{BEFORE}(?P<day>\d{{1,2}})(?P<th>st|nd|rd|th)? (?P<of>of )?(?P<month>{MONTH})(?![a-z])"
        rf"(?:,? (?P<year>\d{{4}}){AFTER})?(?P<the>(?!))?",
        _day_month,
    ),
    rule(
        r"(?<![\w.])(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d))?(?![\d:])"
        r"(?: ?(?P<half>[aApP]\.? ?[mM])(?![A-Za-z])(?:\.(?!$|\s+[A-Z\"']))?)?(?!\w)",
        _time,
    ),
    rule(
        r"(?<![\w.])(?P<hour>\d{1,2})(?P<minute>)(?P<second>)(?: ?(?P<half>[aApP]\.?[mM])(?![A-Za-z])"
        r"(?:\.(?!$|\s+[A-Z\"']))?)",
        lambda m: f"{numbers.cardinal(m['hour'])} {_half_of_day(m['half'])}" if int(m["hour"]) < 25 else None,
    ),
    rule(rf"{BEFORE}(?P<first>\d{{1,3}}):(?P<last>\d{{1,3}}){AFTER}(?!:)", _score),
    rule(r"(?<![\w.])(?P<v>)(?P<parts>\d+(?:\.\d+){2,})(?P<rest>)(?!\w|\.\d)", _version),
    rule(
        rf"(?P<minus>(?<![\w])[-−])?(?P<sign>{_any(list(MONEY))})(?P<number>{NUMBER})"
        rf"(?:[ -]?(?P<scale>{SCALE})(?![A-Za-z]))?"
        rf"(?:[-–—](?P=sign)?(?P<upto>{NUMBER})(?: ?(?P<upto_scale>{SCALE})(?![A-Za-z]))?)?",
        _money,
    ),
    rule(r"(?<![\w.])(?P<feet>\d{1,2}) ?['’′](?: ?(?P<inches>\d{1,2}(?:\.\d)?)(?:\"|”|″|''))(?!\w)", _height),
    rule(rf"{BEFORE}(?:(?P<whole>\d+)(?: |-|⁄))?(?P<above>\d{{1,3}})[/⁄](?P<below>\d{{1,3}})(?![\w/]|[.,]\d)", _fraction),
    rule(r"(?:(?P<whole>(?<![\w.])\d+) ?)?(?P<sign>[¼½¾⅐-⅞])", _vulgar),
    rule(
        rf"(?<![\w.])(?<!{SECONDS})['’]?(?P<number>\d0|\d\d\d0|\d00)['’]?s(?!\w)",
        lambda m: numbers.decade(m["number"]),
    ),
    rule(
        rf"(?P<first>{SIGN}{NUMBER})?(?(first)(?: ?(?:{_UNIT})|)(?:{DASH}))(?P<number>{SIGN}{NUMBER})"
        rf"(?: (?P<scale>hundred|thousand|million|billion|trillion))?[ -]?(?P<unit>{_UNIT})(?P<power>\^?[23²³])?"
        rf"(?:/(?P<per>{_PER})(?P<per_power>\^?[23²³])?)?(?![\w²³])",
        _unit,
    ),
    rule(r"(?<![\w.])['’](?P<number>\d\d)(?!\w)", lambda m: numbers.coded(m["number"])),
    rule(rf"{BEFORE}(?P<number>{WHOLE}) ?(?:st|nd|rd|th|ST|ND|RD|TH)(?!\w)", lambda m: numbers.ordinal(m["number"])),
    rule(rf"{BEFORE}(?P<first>{NUMBER}) ?[–—-] ?(?P<last>{NUMBER})(?![\w-]|[.,]\d| ?[=/])(?<! )", lambda m: None if " - " in m[0] else _range(m)),
    rule(r"(?<![\w.])(?P<base>\d+(?:\.\d+)?)\^(?P<exponent>-?\w+)", _power),
    rule(r"#(?=\d)", " number "),
    rule(r"#(?=\w)", " hashtag "),
    rule(r"(?:(?<=[\d)] )|(?<=[\d)])|(?<=\b[a-z])|(?<=\b[a-z] ))\*(?= ?[\d(]| ?[a-z]\b)", " times "),
    rule(r"(?<=\d )[-–](?= \d)|(?<=[\d)])[-–](?=[\d(])|(?:(?<=\b[a-z])|(?<=\b[a-z] ))[-–](?= ?\d\b)", " minus "),
    rule(r">=|=>", " greater than or equal to "),
    rule(r"<=", " less than or equal to "),
    rule(r"!=|/=", " is not equal to "),
    rule(r"==", " equals "),
    rule(r"->|-->", " to "),
    rule(r"(?<![\w.])\d+-[A-Z](?!\w)", _mixed),
    rule(rf"(?P<sign>{SIGN})(?P<number>{NUMBER})(?!\w)", _plain_number),
    rule(r"(?:/[\w.-]+)+/?(?<=\w{2})(?<![)])(?<!\d)", lambda m: _address(m) if m.start() == 0 or m.string[m.start() - 1] in " (\"'" else None),
    rule(r"\d[\w-]*", _mixed),
    rule(r"(?<=[A-Za-z])/(?=[A-Za-z])", " slash "),
    rule(rf"/(?={_any(['day', 'week', 'month', 'year', 'hour', 'minute', 'second', 'person', 'night'])}\b)", " per "),
]  # fmt: skip

LETTER_RULES = [
    rule(r"[a-z]+://[^\s<>\"]+[\w/]", _address),
    rule(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", _address),
    rule(rf"(?:www\.)?(?:[\w-]+\.)+(?:{DOMAINS})(?![\w.-]*\w)(?:/[^\s<>\"]*[\w/])?", lambda m: _address(m) if m[0][-3:] != ".me" else None),
    rule(r"www\.[\w.-]+\w(?:/[^\s<>\"]*[\w/])?", _address),
    rule(r"[A-Za-z]:\\[\w\\.-]*\w", _address),
    rule(r"\w+(?:/\w+)+\.\w+", _address),
    rule(r"[A-Za-z][\w-]*\.[a-z][a-z0-9]{1,4}(?![\w.])", lambda m: None if m[0] in ABBREVIATIONS or m[0][0].isupper() and m[0].count(".") > 1 else _address(m)),
    rule(
        rf"(?P<month>{MONTH}) (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?![\w:%-]|[.,]\d|/)"
        rf"(?:,? (?P<year>\d{{4}}){AFTER})?",
        _month_day,
    ),
    rule(rf"(?P<short>{'|'.join(SHORT_MONTHS)})\.(?= \d)", lambda m: SHORT_MONTHS[m["short"]]),
    rule(rf"(?:(?P<ruler>{RULERS})|(?P<numbered>{NUMBERED})) (?P<numeral>[IVXLC]+)(?![\w'’.-])", _numeral),
    rule(rf"(?:(?P<ruler>{RULERS})|(?P<numbered>{NUMBERED})) (?P<numeral>[IVXLC]+)(?=\.(?:\s|$|,|;)|['’]s)", _numeral),
    rule(r"(?<=[A-Za-z] )(?P<numeral>I{2,3}|IV|VI{1,3}|IX|XI{1,3}|XIV|XVI{0,3}|XIX|XXI?)(?![\w'’-])", _bare_numeral),
    rule(rf"(?P<short>{'|'.join(ALWAYS_TITLES)})\b\.(?= )", lambda m: None if m["short"] == "Dr" and not m.string[m.end() + 1 :][:1].isupper() else TITLES[m["short"]]),
    rule(rf"(?P<short>{'|'.join(t for t in TITLES if t != 'Sr')})\.(?= ?[A-Z])", lambda m: None if m["short"] in AFTER_NAMES and _is_street(m) else TITLES[m["short"]]),
    rule(rf"(?<=[\w.,&] )(?P<short>{'|'.join(AFTER_NAMES)})\.", _after_name),
    rule(rf"(?P<short>Mr|Mrs|Dr|Prof)(?= [A-Z])", lambda m: TITLES[m["short"]]),
    rule(rf"(?:{_any([a for a in ABBREVIATIONS if a[0].isalpha()])})(?!\w)(?<![a-z]/)", _abbreviation),
    rule(rf"(?P<short>{'|'.join(BEFORE_NUMBERS)})\. ?(?=[A-Z]?\d)", lambda m: BEFORE_NUMBERS[m["short"]] + " "),
    rule(r"(?:[A-Za-z]\.){2,}(?:[A-Za-z](?![\w]))?", _initials),
    rule(r"(?P<v>[vV])(?:er\.|ersion )? ?(?P<parts>\d+(?:\.\d+)+|\d{1,2})(?P<rest>)(?!\w|\.\d)", _version),
    rule(r"(?P<base>[A-Za-z])\^(?P<exponent>-?\w+)", _power),
    rule(r"sqrt ?(?=\()", "square root of "),
    rule(r"sqrt", "square root"),
    rule(r"[A-Za-z]+[A-Za-z-]*\d[\w-]*", _mixed),
]  # fmt: skip


def _is_street(m: Match) -> bool:
    """`Main St.` before a capital is a street if a capitalised word or a number stands before it."""
    before = m.string[: m.start()].split()
    return (
        bool(before)
        and m.string[m.start() - 1] == " "
        and before[-1][0].isupper()
        and bool(re.match(r"[A-Z][a-z]+$", before[-1]))
    )


_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SLASHED = [rule(_any([a for a in ABBREVIATIONS if not a[0].isalpha()]) + r"(?!\w)", _abbreviation)]
_SYMBOL_RULES = [rule(re.escape(sign), said) for sign, said in SYMBOLS.items()] + [
    rule(r"[²³¹⁰⁴-⁹₀-₉①-⑳⑴-⒇❶-❿Ⅰ-ⅻ]", _single_number)
]
_OTHER_RULES = [*_SLASHED, *NUMBER_RULES, *_SYMBOL_RULES]
_GREEK_RULES = [
    rule(rf"(?<![^\W\d_]){letter}(?![^\W\d_])", f" {name} ") for letter, name in GREEK.items()
] + [rule(rf"(?<![^\W\d_]){letter.upper()}(?![^\W\d_])", f" {name} ") for letter, name in GREEK.items()]


def _rules_at(character: str) -> Sequence[Rule]:
    if not character.isalpha():
        return () if character in " ,;?!)" else _OTHER_RULES
    return LETTER_RULES if character.isascii() else _GREEK_RULES + _SYMBOL_RULES if character > "ʰ" else ()


def is_speakable(character: str) -> bool:
    """Latin letters, their accents, spaces and punctuation."""
    if character.isascii():
        return character.isalpha() or character.isspace() or character in ".,;:!?\"'()[]{}-`"
    if character in "“”„«»‘’ʼ´—–‒―‑‐…¿¡" or character.isspace():
        return True
    if unicodedata.category(character) == "Mn":
        return "\u0300" <= character <= "\u036f"
    return character.isalpha() and unicodedata.name(character, "").startswith("LATIN")


def pieces(text: str) -> list[Piece]:
    """Pieces that cover the text with what is said for each."""
    return list(scan(text, _rules_at, _WORD))


def spoken_units(text: str) -> list[Unit]:
    """Written tokens, separated by spaces, with the words each is spoken as."""
    tokens = [m.span() for m in re.finditer(r"\S+", text)]
    return units(text, pieces(text), tokens, is_speakable, re.compile(r"\S+"))


def unknown(text: str) -> str:
    """Characters that no rule can say, each once."""
    return unknown_characters(pieces(text), is_speakable)
