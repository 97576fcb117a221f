"""Spoken form of English text: rules for numbers, money, units, dates, abbreviations and symbols.

Words, upper-case acronyms (which voices spell or read themselves) and punctuation are kept as written.
"""

import re
import unicodedata
from collections.abc import Sequence

from lit_moss.prepare import english_numbers as numbers
from lit_moss.prepare import english_readings as say
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
    RULERS,
    SHORT_MONTHS,
    SYMBOLS,
    TITLES,
    UNITS,
)
from lit_moss.prepare.spoken_rules import Piece, Rule, Unit, rule, scan, units, unknown_characters


def _any(words: Sequence[str]) -> str:
    return "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True))


WHOLE = r"(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)"
NUMBER = rf"(?:{WHOLE}(?:\.\d+)?|\.\d+)"
SIGN = r"(?:(?<![\w.)%$€£¥])[-−+])?"
DASH = r" ?[-–—] ?| to "
SCALE = r"hundred|thousand|million|billion|trillion|mn|bn|tn|[kKmMbBtT]"
BEFORE = r"(?<![\w.])(?<!\d,)"  # a number starts here
AFTER = r"(?!\w|[.,]\d)"  # and ends here
MONTH = rf"(?:{'|'.join(MONTHS)}|(?:{'|'.join(SHORT_MONTHS)})\b\.?)"
HALF = r"[aApP]\.?[mM](?![A-Za-z])"
_REST_OF_NAME = r"(?:[A-Za-z0-9_-]|(?<=\d)\.(?=\d))*"  # GPT-3.5-turbo
SECONDS = r"for |ter |ery |hin "  # (af)ter, (ev)ery, (wit)hin 30s


# --- the rules ----------------------------------------------------------------------------------------------

_UNIT = _any(list(UNITS))
_CROWD = r"people|men|women|children|(?!was |has |does )[a-z]{2,}s\b"
_PER = _any([*UNITS, "day", "week", "month", "year", "hour", "minute", "second", "person", "night", "user"])

MONEY_RULE = rule(
    rf"(?P<minus>(?<![\w])[-−])?(?P<sign>{_any(list(MONEY))})"
    r"(?:[ \u00a0\u202f](?<!\d[$€£¥￥₹₩₽].)(?<!\d [$€£¥￥₹₩₽].))?"  # but not in `5 $ 3`
    r"(?P<minus_after>(?<!\d[$€£¥￥₹₩₽])(?<!\d [$€£¥￥₹₩₽])[-−])?"  # nor in `5$-10$`
    rf"(?P<number>{NUMBER})"
    rf"(?:[ -]?(?P<scale>{SCALE})(?![A-Za-z]))?"
    rf"(?:[-–—](?P=sign)?(?P<upto>{NUMBER})(?: ?(?P<upto_scale>{SCALE})(?![A-Za-z]))?)?",
    say.money,
)
NUMBER_RULES = [
    rule(r"\+\d{1,3}(?:[ -.]?\(\d{1,4}\))?(?:[ -.]?\d{2,5}){1,5}(?![\w])(?<=\d{4})", say.phone),
    rule(r"(?:1[ -.])?\(\d{3}\) ?\d{3}[-. ]\d{4}(?!\w)", say.phone),
    rule(r"(?<![\w.-])(?:1[-.])?(?:\d{3}[-.]){1,2}(?<=-)\d{4}(?![\w-])", say.phone),
    rule(r"(?<![\w.-])\d{3}\.\d{3}\.\d{4}(?![\w-])", say.phone),
    rule(
        rf"{BEFORE}(?P<year>\d{{4}})(?P<dash>[-/])(?P<month>\d{{1,2}})(?P=dash)(?P<day>\d{{1,2}}){AFTER}",
        say.iso_date,
    ),
    rule(  # with dots as in versions: only if nothing but a date has two and four digits
        rf"{BEFORE}(?P<year>(?:19|20)\d\d)\.(?P<month>\d\d)\.(?P<day>\d\d){AFTER}",
        say.iso_date,
    ),
    rule(rf"{BEFORE}(?P<first>\d{{1,2}})/(?P<second>\d{{1,2}})/(?P<year>\d{{4}}|\d\d){AFTER}", say.us_date),
    rule(
        rf"{BEFORE}(?P<first>\d{{1,2}})(?P<dash>[-.])(?P<second>\d{{1,2}})(?P=dash)(?P<year>(?:1\d|20)\d\d)"
        rf"{AFTER}(?!-\d)",
        say.us_date,
    ),
    rule(
        rf"{BEFORE}(?P<day>\d{{1,2}})(?P<th>st|nd|rd|th)? (?P<of>of )?(?P<month>{MONTH})(?![a-z])"
        rf"(?:,? (?P<year>\d{{4}}){AFTER})?(?P<the>(?!))?",
        say.day_month,
    ),
    rule(
        rf"[-–—] ?(?=(?P<half>\d{{1,2}}(?::\d\d)? ?{HALF}|[Nn]oon\b|[Mm]idnight\b)|\d{{1,2}}:\d\d"
        r"|(?P<hour>(?<! )\d{1,2}(?!\w|[.,:]\d)))",
        say.until,
    ),
    rule(
        rf"(?<![\w.:])\d{{1,2}}(?= ?[-–—] ?(?:\d{{1,2}}(?::\d\d)? ?{HALF}))",
        lambda m: numbers.cardinal(m[0]),
    ),
    rule(
        r"(?<![\w.])(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d))?(?![\d:])"
        r"(?: ?(?P<half>[aApP]\.? ?[mM])(?![A-Za-z])(?:\.(?!$|\s+[A-Z\"']))?)?(?!\w)",
        say.time,
    ),
    rule(
        r"(?<![\w.])(?P<hour>\d{1,2})(?P<minute>)(?P<second>)(?: ?(?P<half>[aApP]\.?[mM])(?![A-Za-z])"
        r"(?:\.(?!$|\s+[A-Z\"']))?)",
        lambda m: f"{numbers.cardinal(m['hour'])} {say.am_or_pm(m['half'])}" if int(m["hour"]) < 25 else None,
    ),
    rule(rf"{BEFORE}(?P<first>\d{{1,3}}):(?P<last>\d{{1,3}}){AFTER}(?!:)", say.score),
    rule(r"(?<![\w.])(?P<v>)(?P<parts>\d+(?:\.\d+){2,})(?P<rest>)(?!\w|\.\d)", say.version),
    MONEY_RULE,
    rule(
        r"(?<![\w.])(?P<feet>\d{1,2}) ?['’′](?: ?(?P<inches>\d{1,2}(?:\.\d)?)(?:\"|”|″|''))(?!\w)", say.height
    ),
    rule(
        rf"{BEFORE}(?:(?P<whole>\d+)(?: |-|⁄))?(?P<above>\d{{1,3}})[/⁄](?P<below>\d{{1,3}})(?![\w/]|[.,]\d)",
        say.fraction,
    ),
    rule(r"(?:(?P<whole>(?<![\w.])\d+) ?)?(?P<sign>[¼½¾⅐-⅞])", say.vulgar),
    rule(rf"{BEFORE}(?P<number>\d{{1,3}}(?:,\d{{3}})+)s(?= of\b)", say.about_many),
    rule(rf"{BEFORE}(?<!{SECONDS})(?P<number>\d{{1,3}}(?:,\d{{3}})+)s(?!\w)", say.about_many),
    rule(rf"{BEFORE}(?P<number>10{{2,}})s(?= of (?:[a-z]+ ){{0,2}}(?:{_CROWD}))", say.about_many),
    rule(
        rf"(?<![\w.])(?<!{SECONDS})['’]?(?P<number>\d0|\d\d\d0|\d00)['’]?s(?!\w)",
        lambda m: numbers.decade(m["number"]),
    ),
    rule(
        rf"(?P<first>{SIGN}{NUMBER})?(?(first)(?: ?(?:{_UNIT})|)(?:{DASH}))(?P<number>{SIGN}{NUMBER})"
        r"(?: (?P<scale>hundred|thousand|million|billion|trillion))?"
        rf"[ -]?(?P<unit>{_UNIT})(?P<power>\^?[23²³])?"
        rf"(?:/(?P<per>{_PER})(?P<per_power>\^?[23²³])?)?(?![\w²³'’])",
        say.unit,
    ),
    rule(r"(?<![\w.])['’](?P<number>\d\d)(?!\w)", lambda m: numbers.coded(m["number"])),
    rule(
        rf"{BEFORE}(?P<number>{WHOLE}) ?(?:st|nd|rd|th|ST|ND|RD|TH)(?!\w)",
        lambda m: numbers.ordinal(m["number"]),
    ),
    rule(
        rf"{BEFORE}(?P<first>{NUMBER}) ?[–—-] ?(?P<last>{NUMBER})(?![\w-]|[.,]\d| ?[=/])(?<! )",
        lambda m: None if " - " in m[0] else say.number_range(m),
    ),
    rule(r"(?<![\w.])(?P<base>\d+(?:\.\d+)?)\^(?P<exponent>-?\w+)", say.power),
    rule(r"(?<=\ds)[-–](?=\d+s)", " to "),
    rule(
        rf"{BEFORE}{NUMBER}(?: ?x ?{NUMBER})+(?!\w)",
        lambda m: " by ".join(numbers.cardinal(n) for n in re.split(" ?x ?", m[0])),
    ),
    rule(
        rf"(?P<number>(?<=ft ){NUMBER} ?|{NUMBER})in(?!\w)",
        lambda m: f"{numbers.cardinal(m['number'].strip())} inches",
    ),
    rule(r"#(?=\d)", " number "),
    rule(r"#(?=\w)", " hashtag "),
    rule(r"(?:(?<=[\d)] )|(?<=[\d)])|(?<=\b[a-z])|(?<=\b[a-z] ))\*(?= ?[\d(]| ?[a-z]\b)", " times "),
    rule(
        r"(?<=\d )[-–](?= \d)|(?<=[\d)])[-–](?=[\d(])|(?:(?<=\b[a-z])|(?<=\b[a-z] ))[-–](?= ?\d\b)", " minus "
    ),
    rule(r">=|=>", " greater than or equal to "),
    rule(r"<=", " less than or equal to "),
    rule(r"!=|/=", " is not equal to "),
    rule(r"==", " equals "),
    rule(r"->|-->", " to "),
    rule(rf"(?P<number>{SIGN}\d+(?:\.\d+)?)(?P<e>[eE])(?P<exponent>[-−+]\d+)(?!\w|\.\d)", say.scientific),
    rule(r"(?<![\w.])\d+-[A-Z](?!\w)", say.mixed),
    rule(rf"(?P<sign>{SIGN})(?P<number>{NUMBER})(?!\w|\.\d)", say.plain_number),
    rule(
        r"(?:/[\w.-]+)+/?(?<=\w{2})(?<![)])(?<!\d)",
        lambda m: say.address(m) if m.start() == 0 or m.string[m.start() - 1] in " (\"'" else None,
    ),
    rule(rf"(?P<number>{NUMBER})[x×](?![A-Za-z0-9])", lambda m: f"{numbers.cardinal(m['number'])} times"),
    rule(rf"\d+(?:\.\d+)?[A-Za-z_-]{_REST_OF_NAME}", say.mixed),
    rule(NUMBER, lambda m: f"{numbers.cardinal(m[0])} "),
    rule(r"(?<=[A-Za-z])/(?=[A-Za-z])", " slash "),
    rule(
        rf"/(?={_any(['day', 'week', 'month', 'year', 'hour', 'minute', 'second', 'person', 'night'])}\b)",
        " per ",
    ),
]

LETTER_RULES = [
    MONEY_RULE,
    rule(r"[a-z]+://[^\s<>\"]+[\w/]", say.address),
    rule(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", say.address),
    rule(
        rf"(?:www\.)?(?:[\w-]+\.)+(?:{DOMAINS})(?![\w.-]*\w)(?:/[^\s<>\"]*[\w/])?",
        lambda m: say.address(m) if m[0][-3:] != ".me" else None,
    ),
    rule(r"www\.[\w.-]+\w(?:/[^\s<>\"]*[\w/])?", say.address),
    rule(r"[A-Za-z]:\\[\w\\.-]*\w", say.address),
    rule(r"\w+(?:/\w+)+\.\w+", say.address),
    rule(
        r"[A-Za-z][\w-]*\.[a-z][a-z0-9]{1,4}(?![\w.])",
        lambda m: (
            None if m[0] in ABBREVIATIONS or (m[0][0].isupper() and m[0].count(".") > 1) else say.address(m)
        ),
    ),
    rule(
        rf"(?P<month>{MONTH}) (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?![\w:%-]|[.,]\d|/)"
        rf"(?:,? (?P<year>\d{{4}}){AFTER})?",
        say.month_day,
    ),
    rule(rf"(?P<short>{'|'.join(SHORT_MONTHS)})\.(?= \d)", lambda m: SHORT_MONTHS[m["short"]]),
    rule(rf"(?:(?P<ruler>{RULERS})|(?P<numbered>{NUMBERED})) (?P<numeral>[IVXLC]+)(?![\w'’.-])", say.numeral),
    rule(
        rf"(?:(?P<ruler>{RULERS})|(?P<numbered>{NUMBERED})) (?P<numeral>[IVXLC]+)(?=\.(?:\s|$|,|;)|['’]s)",
        say.numeral,
    ),
    rule(
        r"(?<=[A-Za-z] )(?P<numeral>I{2,3}|IV|VI{1,3}|IX|XI{1,3}|XIV|XVI{0,3}|XIX|XXI?)(?![\w'’-])",
        say.bare_numeral,
    ),
    rule(
        rf"(?P<short>{'|'.join(ALWAYS_TITLES)})\b\.(?= )",
        lambda m: (
            None if m["short"] == "Dr" and not m.string[m.end() + 1 :][:1].isupper() else TITLES[m["short"]]
        ),
    ),
    rule(
        rf"(?P<short>{'|'.join(t for t in TITLES if t != 'Sr')})\.(?= ?[A-Z])",
        lambda m: None if m["short"] in AFTER_NAMES and say.is_street(m) else TITLES[m["short"]],
    ),
    rule(rf"(?<=[\w.,&] )(?P<short>{'|'.join(AFTER_NAMES)})\.", say.after_name),
    rule(r"(?P<short>Mr|Mrs|Dr|Prof)(?= [A-Z])", lambda m: TITLES[m["short"]]),
    rule(rf"(?:{_any([a for a in ABBREVIATIONS if a[0].isalpha()])})(?!\w)(?<![a-z]/)", say.abbreviation),
    rule(
        rf"(?P<short>{'|'.join(BEFORE_NUMBERS)})\. ?(?=[A-Z]?\d)", lambda m: BEFORE_NUMBERS[m["short"]] + " "
    ),
    rule(r"(?:[A-Za-z]\.){2,}(?:[A-Za-z](?![\w]))?", say.initials),
    rule(r"(?P<v>[vV])(?:er\.|ersion )? ?(?P<parts>\d+(?:\.\d+)+|\d{1,2})(?P<rest>)(?!\w|\.\d)", say.version),
    rule(r"(?P<base>[A-Za-z])\^(?P<exponent>-?\w+)", say.power),
    rule(r"sqrt ?(?=\()", "square root of "),
    rule(r"sqrt", "square root"),
    rule(r"(?:[Mm]id|[Pp]re|[Pp]ost|[Ll]ate|[Ee]arly)-(?=\d)", lambda m: f"{m[0][:-1]} "),
    rule(r"(?P<letter>[CF])#(?!\w)", lambda m: f"{m['letter']} sharp"),
    rule(r"(?:[Nn]oon|[Mm]idnight)(?=[-–—]\d)", lambda m: m[0]),  # a time, not a name
    rule(rf"[A-Za-z]+[A-Za-z-]*\d{_REST_OF_NAME}", say.mixed),
]


_LETTER = r"[^\W\d_¹²³⁰-ₜ①-⓿❶-❿¼-¾⅐-ↈ]"
_WORD = re.compile(rf"{_LETTER}+(?:['’]{_LETTER}+)*")
_SLASHED = [rule(_any([a for a in ABBREVIATIONS if not a[0].isalpha()]) + r"(?!\w)", say.abbreviation)]
_SYMBOL_RULES = [rule(re.escape(sign), said) for sign, said in SYMBOLS.items()] + [
    rule(r"[²³¹⁰⁴-⁹₀-₉①-⑳⑴-⒇❶-❿Ⅰ-ⅻ]", say.single_number)
]
_OTHER_RULES = [*_SLASHED, *NUMBER_RULES, *_SYMBOL_RULES]
_GREEK_RULES = [rule(rf"(?<![^\W\d_]){letter}(?![^\W\d_])", name) for letter, name in GREEK.items()] + [
    rule(rf"(?<![^\W\d_]){letter.upper()}(?![^\W\d_])", name) for letter, name in GREEK.items()
]


def _rules_at(character: str) -> Sequence[Rule]:
    if not character.isalpha():
        return () if character in " ,;?!)" else _OTHER_RULES
    return LETTER_RULES if character.isascii() else _GREEK_RULES + _SYMBOL_RULES if character > "ʰ" else ()


def is_speakable(character: str) -> bool:
    """Whether it is a Latin letter, possibly accented, a space or punctuation."""
    if character.isascii():
        return character.isalpha() or character.isspace() or character in ".,;:!?\"'()[]{}-`"
    if character in "“”„«»‘’ʼ´—–‒―‑‐…¿¡" or character.isspace():
        return True
    if unicodedata.category(character) == "Mn":
        return "\u0300" <= character <= "\u036f"
    return character.isalpha() and unicodedata.name(character, "").startswith("LATIN")


def pieces(text: str) -> list[Piece]:
    """Pieces that cover the text, each with its spoken form."""
    return list(scan(text, _rules_at, _WORD))


def spoken_units(text: str) -> list[Unit]:
    """Written tokens, separated by spaces, each with its spoken words."""
    tokens = [m.span() for m in re.finditer(r"\S+", text)]
    return units(text, pieces(text), tokens, is_speakable, re.compile(r"\S+"))


def unknown(text: str) -> str:
    """Characters that no rule can handle, without duplicates."""
    return unknown_characters(pieces(text), is_speakable)
