"""Spoken form of Chinese text: own rules where wetext is wrong, wetext for the other numbers.

Words in Latin letters are kept. Own rules handle numbers with thousands separators, ranges, signs and
negative percentages, a single 2 (两 or 二), powers, letters with digits (`GPT-4`, `A380`: digits one by one),
web addresses, grouped phone numbers, symbols and Greek letters. The text in between is passed to wetext
clause by clause: it would read `2，3个` as 23.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from lit_moss.errors import UserError
from lit_moss.prepare import spoken_en
from lit_moss.prepare.chinese_tables import (
    ADDRESS_SIGNS,
    COUNTED,
    DAYS_AFTER,
    DAYS_BEFORE,
    DESIGNATIONS,
    GREEK,
    MONEY,
    NAMED_BY_TWO,
    ORDERED,
    PER,
    RAISED_UNITS,
    RANGE_UNITS,
    SCALES,
    SYMBOLS,
    UNITS,
)
from lit_moss.prepare.language import is_han
from lit_moss.prepare.spoken_rules import Piece, Rule, Unit, rule, scan, units, unknown_characters

Match = re.Match[str]
DIGITS = "零一二三四五六七八九"
# A full-width comma separates thousands only if a list is unlikely: not in `100，200，300元`.
_WIDE_THOUSANDS = (
    r"(?<!第)(?<!\d，)(?:[1-9]\d?(?:，\d{3}){2,}|[1-9]\d{0,2}(?:，\d{3})*?，0\d\d(?:，\d{3})*"
    r"|[1-9]\d?，\d{3}(?=[万亿]?(?:元|美元|欧元|英镑|日元|港元|人|名|个|件|次|米|公里|公斤|吨)))"
)
_THOUSANDS = rf"(?<!\d)(?:\d{{1,3}}(?:,\d{{3}})+|{_WIDE_THOUSANDS})(?!\d)(?:\.\d+)?"
NUMBER = rf"(?:{_THOUSANDS}|\d+(?:\.\d+)?)"
BEFORE = r"(?<![\w.])(?<!\d,)|(?<=[^\W\d_a-zA-Zａ-ｚ])"  # Han characters are word characters
_PUNCTUATION = "〇。，；：！？、·《》〈〉「」『』【】（）〔〕“”‘’—…～.,;:!?\"'()[]{}-`"


@cache
def _normalizer() -> Any:
    try:
        from wetext import Normalizer
    except ImportError as error:
        raise UserError("spoken Chinese needs wetext: pip install 'lit-moss[prepare]'") from error
    return Normalizer(lang="zh", operator="tn")


def digits(text: str) -> str:
    """`2024` -> 二零二四; other characters are ignored."""
    return "".join(DIGITS[int(c)] for c in text if c.isdecimal())


def cardinal(number: str) -> str:
    """`1,234.5` -> 一千二百三十四点五; numbers with more than 16 digits are said digit by digit."""
    whole, _, decimals = re.sub("[,，]", "", number).partition(".")
    if len(whole) > 16 or (len(whole) > 1 and whole[0] == "0"):
        said = digits(whole)
    else:
        said = _whole(int(whole or "0"))
    return said + (f"点{digits(decimals)}" if decimals else "")


_SIZES = ((10**12, "万亿"), (10**8, "亿"), (10**4, "万"), (1000, "千"), (100, "百"), (10, "十"))


def _whole(value: int) -> str:
    if value < 10:
        return DIGITS[value]
    size, name = next((size, name) for size, name in _SIZES if value >= size)
    above, below = divmod(value, size)
    said = "" if above == 1 and size == 10 else "两" if above == 2 and size > 100 else _whole(above)
    if not below:
        return said + name
    zero = "零" if below < size // 10 and size > 10 else ""
    rest = _whole(below)
    return said + name + zero + (f"一{rest}" if rest[0] == "十" else rest)


# --- the rules ----------------------------------------------------------------------------------------------


def _signed(number: str) -> str:
    sign = "负" if number[0] in "-−" else "正" if number[0] == "+" else ""
    return sign + cardinal(number.lstrip("-−+"))


def _range(m: Match) -> str:
    unit = m["unit"] or ""
    first, last = m["first"], m["last"]
    if "%" in unit or "％" in unit:
        return f"百分之{cardinal(first)}到百分之{cardinal(last)}"
    if unit == "年" and len(first) == 4:
        return f"{digits(first)}到{digits(last)}年"
    said_first, said_last = cardinal(first), cardinal(last)
    counted = _COUNTED.match(m.string, m.end("last")) or unit not in ("", *"年元月日号度页章楼")
    if counted and not _ORDERED.search(_text_before(m)):
        said_first, said_last = _two(said_first), _two(said_last)
    between = m["first_unit"] or ""
    return f"{said_first}{UNITS.get(between, between)}到{said_last}{UNITS.get(unit, unit)}"


def _money(m: Match) -> str:
    number, scale = cardinal(m["number"]), SCALES.get(m["scale"] or "", m["scale"] or "")
    number = number if scale[:1] == "十" else _two(number)
    return f"{'负' if m['minus'] or m['minus_after'] else ''}{number}{scale}{MONEY[m['sign']]}"


def _percent(m: Match) -> str:
    number = m["number"]
    sign = "负" if number[0] in "-−" else ""
    return f"{sign}{'千' if m['sign'] == '‰' else '百'}分之{cardinal(number.lstrip('-−+'))}"


def _unit(m: Match) -> str:
    number, unit = m["number"], UNITS[m["unit"]]
    return (_two(_signed(number)) if unit not in ("摄氏度", "华氏度") else _signed(number)) + unit


def _per(m: Match) -> str:
    """`100元/天` -> 每天一百元."""
    name = UNITS.get(m["unit"], m["unit"])
    return f"每{PER.get(m['per']) or UNITS.get(m['per'], m['per'])}{_two(cardinal(m['number']))}{name}"


def _date(m: Match) -> str | None:
    month, day = int(m["month"]), int(m["day"] or 1)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{digits(m['year'])}年{cardinal(str(month))}月" + (f"{cardinal(str(day))}日" if m["day"] else "")


def _height(m: Match) -> str:
    return f"{_two(cardinal(m['feet']))}英尺" + (f"{cardinal(m['inches'])}英寸" if m["inches"] else "")


def _two(said: str) -> str:
    return "两" if said == "二" else said


def _text_before(m: Match) -> str:
    """The last characters before a match; using the whole prefix for each match would be quadratic."""
    return m.string[max(0, m.start() - 20) : m.start()].rstrip()


def _lone_two(m: Match) -> str | None:
    """二 in `5月2日`, `2次函数`, `第1、2次`, `第1，2页`; 两 in `2次`, `为期2日`; None where wetext knows."""
    before, at = _text_before(m), m.end()
    part = m.string[at : at + 1] in [*"页章节条款行卷册集课题段"]  # else a clause may begin: 居第3，2次夺冠
    if re.search(r"第[\d、，,和及至到]+$" if part else r"第[\d、和及至到]+$", before) or _NAMED.match(
        m.string, at
    ):
        return "二"
    if _COUNTED.match(m.string, at):
        return "二" if _ORDERED.search(before) else "两"
    if not _DAY.match(m.string, at):
        return None
    is_time = _DAYS_AFTER.search(before) or (_DAYS_BEFORE.match(m.string, at) and before[-1:] != "月")
    return "两" if is_time else "二"


def _mixed(m: Match) -> str:
    """Letters with digits: `GPT-4` -> GPT四, `A380` -> A三八零."""
    parts: list[str] = re.findall(r"\d+|\.(?=\d)|[^\d.-]+", m[0])
    return " " + "".join(digits(p) if p.isdecimal() else "点" if p == "." else p for p in parts) + " "


def _address(m: Match) -> str:
    body = re.sub(r"^[a-z]+://", "", m[0]).rstrip("/")
    body = re.sub(r"^www(?=\.)", "WWW", body)
    parts: list[str] = re.findall(r"\d|[A-Za-z]+|.", body)
    return " " + " ".join(DIGITS[int(p)] if p.isdecimal() else ADDRESS_SIGNS.get(p, p) for p in parts) + " "


def _phone(m: Match) -> str:
    said = "，".join(digits(g).replace("一", "幺") for g in re.findall(r"\d+", m[0]))
    return ("加" if m[0][0] == "+" else "") + said


def _long_number(m: Match) -> str:
    """Digits of identity cards and orders one by one; an amount as a number: 100000000000元."""
    is_amount = m[0].endswith("000000") or _AMOUNT.match(m.string, m.end())
    return cardinal(m[0]) if is_amount else digits(m[0])


def _ratio(m: Match) -> str | None:
    """`1：100` -> 一比一百. With two digits after each colon it is a time, except in 比分21：19."""
    parts = re.split("[:：]", m[0])
    may_be_time = ":" in m[0] or all(re.fullmatch(r"\d\d", p) for p in parts[1:])
    if may_be_time and not _COMPARED.search(_text_before(m)) and not _WON.match(m.string, m.end()):
        return None
    return "比".join(map(cardinal, parts))


def _hyphen(m: Match) -> str | None:
    """ "" for the hyphen of 歼-20; None if it may be a minus."""
    return "" if _DESIGNATED.search(_text_before(m)) else None


def _negative(m: Match) -> str | None:
    """负 for the minus of 气温−5度; None after a number or a letter, from which it subtracts."""
    return None if re.search(r"[A-Za-z\d)）\]%％℃°]$", _text_before(m)) else "负"


def _version(m: Match) -> str:
    return "点".join(digits(p) if len(p) > 2 else cardinal(p) for p in m[0].split("."))


def _clock(m: Match) -> str | None:
    hour, minute, second = int(m["hour"]), m["minute"], m["second"]
    if hour > 24 or int(minute) > 59:
        return None
    said = f"{_two(cardinal(str(hour)))}点"
    if minute != "00" or second:
        said += f"{cardinal(minute)}分"
    if second:
        said += cardinal(second) + "秒"
    half = (m["half"] or "").lower().replace(".", "")
    return {"am": "上午", "pm": "下午"}.get(half, "") + said


def _single_number(m: Match) -> str | None:
    value = unicodedata.numeric(m[0])
    if value == int(value):
        return cardinal(str(int(value)))
    above, _, below = unicodedata.normalize("NFKC", m[0]).partition("⁄")
    return f"{cardinal(below)}分之{cardinal(above)}" if below else None


def _power(m: Match) -> str | None:
    """Text spoken after the base: `^2` and `²` -> 的平方. None after a word, where `²` marks a footnote."""
    if not _BASE.search(_text_before(m)):
        return None
    exponent = m["exponent"] or m["raised"].translate(_PLAIN_DIGITS)
    said = exponent if exponent.lstrip("-").isalpha() else _signed(exponent)
    return {"2": "的平方", "3": "的立方"}.get(exponent, f"的{said.replace('-', '负')}次方")


def _minus(m: Match) -> str | None:
    """The minus in `x²-1`, `a-b²` and `-x²`; None without a power, where it may be a dash."""
    before = _text_before(m)
    if not _POWER_ENDS.search(before) and not _POWER_BEGINS.match(m.string, m.end()):
        return None
    if re.search(rf"[A-Za-z\d{_SMALL_DIGITS}ⁿ)）\]]$", before):
        return "减"
    return None if m[0][-1] == " " else "负"


_UNIT = "|".join(re.escape(u) for u in sorted(UNITS, key=len, reverse=True))
_MONEY = "|".join(re.escape(sign) for sign in sorted(MONEY, key=len, reverse=True))
PER_UNITS = rf"(?:{_UNIT})|元|美元|块|次|个|人|公里|千米|米|克|升|分|页"
_SYMBOL = [rule(re.escape(sign), said) for sign, said in SYMBOLS.items()]
_DASH = r" ?[-–—~～至] ?"
_PER = "|".join(re.escape(u) for u in sorted(PER, key=len, reverse=True))
_COUNTED, _NAMED = re.compile(f" ?(?:{COUNTED})"), re.compile(f" ?(?:{NAMED_BY_TWO})")
_DAY = re.compile(" ?日(?!元(?!旦|宵))")
_ORDERED = re.compile(f"(?:{ORDERED})$")
_DAYS_AFTER = re.compile(f"(?:{DAYS_AFTER})$")
_DAYS_BEFORE = re.compile(f" ?日(?:{DAYS_BEFORE})")
_SMALL_DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_PLAIN_DIGITS = str.maketrans(f"{_SMALL_DIGITS}⁻ⁿ", "0123456789-n")
_RAISED = rf"⁻?(?:[{_SMALL_DIGITS}]+|ⁿ)(?![{_SMALL_DIGITS}⁺⁻])"  # but not the charge of Ca²⁺
_POWER_ENDS = re.compile(rf"[{_SMALL_DIGITS}ⁿ]$|\^-?(?:\d+|[A-Za-z])$")
_POWER_BEGINS = re.compile(rf"\d*[A-Za-z]{{1,3}}(?:\^|{_RAISED})")
_BASE = re.compile(r"(?:(?<![A-Za-z])[A-Za-z]{1,3}|[\d)）\]₀-₉α-ω])$")
_DESIGNATED = re.compile(f"(?:{DESIGNATIONS})$")
_COMPARED = re.compile(r"(?:比分|比例|比例尺|比率|比值|配比|之比)(?:是|为|约|约为|达|[:：])?$")
_WON = re.compile(
    r" ?(?:[大小险完惜]胜|战胜|击败|获胜|取胜|胜出|战平|逆转|[惜完]败|落败|领先|落后|负于|不敌)"
)
_AMOUNT = re.compile(
    r" ?(?:[万亿]|[美欧日港]?元|英镑|人(?!员)|[个件次吨米克升]|公里|公斤|平方|立方|字节|[%％])"
)
_DATE = r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?!\d)"
_ENDS_A_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}$")
_MINUS = r"(?:(?<![\w.])[-−]|(?<=[^\W\da-zA-Z_])[-−])?"

RULES = [
    rule(r"[a-zA-Z]+://[A-Za-z0-9./?=&%_#:+~-]*[A-Za-z0-9/]", _address),
    rule(r"[A-Za-z0-9_.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+", _address),
    rule(
        rf"(?:[A-Za-z0-9-]+\.)+(?:{spoken_en.DOMAINS})(?![A-Za-z0-9])(?:/[A-Za-z0-9./?=&%_#-]*[A-Za-z0-9])?",
        _address,
    ),
    rule(r"www\.[A-Za-z0-9.-]+[A-Za-z0-9]", _address),
    rule(r"[A-Za-z_][\w-]*\.[a-z][a-z0-9]{1,3}(?![A-Za-z0-9.])", _address, re.ASCII),
    rule(r"(?<![\d.])\+\d{1,3}(?:[ -]?\(?\d{2,4}\)?){2,5}(?!\d)", _phone),
    rule(r"(?<![\d.])(?:\(0\d{2,3}\) ?|0\d{2,3}-)\d{7,8}(?!\d)", _phone),
    rule(r"(?<![\d.,，])\d{12,}(?![\dA-Za-z]|\.\d)", _long_number),
    rule(rf"(?<![\d.,，])\d{{11}}(?={_AMOUNT.pattern})", lambda m: cardinal(m[0])),
    rule(r"(?<![\d.])1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)", _phone),
    rule(
        r"(?:(?<=邮编)|(?<=邮编[:：是为])|(?<=邮政编码)|(?<=邮政编码[:：是为]))\d{6}(?!\d)",
        lambda m: digits(m[0]),
    ),
    rule(r"(?<![\d.])[48]00[- ]?\d{3}[- ]?\d{4}(?!\d)", _phone),
    rule(r"(?<![\d.])(?<!\d[:：])\d+(?:\.\d+)?(?:[:：]\d+(?:\.\d+)?)+(?![\d:：]|\.\d)", _ratio),
    rule(
        r"(?<![\d.:])(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d))?(?![\d:])"
        r" ?(?P<half>[aApP]\.?[mM]\.?)?",
        _clock,
    ),
    rule(
        r"(?<![\d.])(?<!版本)(?P<year>\d{4})(?P<dash>[-/.])(?P<month>\d{1,2})(?P=dash)(?P<day>\d{1,2})"
        rf"(?![\d/]|\.\d|-(?!{_DATE}))",
        _date,
    ),
    rule(rf"(?<=\d)[-–—~～](?={_DATE})", lambda m: "到" if _ENDS_A_DATE.search(_text_before(m)) else None),
    rule(
        r"(?<![\d./-])(?P<month>\d{1,2})(?P<dash>[-/])(?P<day>\d{1,2})(?P=dash)(?P<year>(?:19|20)\d\d)"
        r"(?![\d/-]|\.\d)",
        _date,
    ),
    rule(r"(?<![\d.])\d+(?:\.\d+){2,}(?![\d.])", _version),
    rule(r"(?<![\d.])(?P<year>(?:19|20)\d\d)-(?P<month>0[1-9]|1[0-2])(?P<day>)(?![\d./-]|年)", _date),
    rule(r"(?<=\d\d)[-–~～](?=\d{1,2}:\d\d)", "到"),
    rule(
        r"(?<![\d./])(?P<above>\d{1,3})/(?P<below>\d{1,3})(?![\d/.])",
        lambda m: f"{cardinal(m['below'])}分之{cardinal(m['above'])}",
    ),
    rule(r"(?<![\d.])(?P<feet>\d)['’′](?:(?P<inches>\d{1,2})[\"”″])", _height),
    rule(r"No\. ?(?=\d)", "第"),
    rule(r"[-−–‐‑](?=\d+(?!\d|\.\d| ?[度℃°%％]))", _hyphen),
    rule(r"(?<=第)\d+(?![\d.-]|[–—~～]\d)", lambda m: cardinal(m[0])),
    rule(r"(?<![\d第月.])2(?= ?[点倍])(?! ?点\d)", "两"),
    rule(r"(?<=\d)·(?=\d)", "点"),
    rule(r"(?<![\d.])\d+(?:\.\d+)?[wW](?![A-Za-z])", lambda m: cardinal(m[0][:-1]) + "万"),
    rule(rf"(?P<number>{NUMBER}) ?(?P<unit>{PER_UNITS})/(?P<per>{_UNIT}|{_PER})(?![A-Za-z])", _per),
    rule(rf"\^(?P<exponent>-?(?:\d+(?:\.\d+)?|[A-Za-z]+))|(?P<raised>{_RAISED})", _power),
    rule(r"[-−–] ?(?=[\dA-Za-z(（])", _minus),
    rule(rf"[A-Za-z](?=-{_POWER_BEGINS.pattern})", lambda m: m[0]),  # x-2y² is not a name
    rule(  # a unit without a number, but not a term of an equation
        rf"(?<![A-Za-z\d=+*×^-])(?<![=+*×-] )(?:{'|'.join(RAISED_UNITS)})(?! ?[-+=*×^])",
        lambda m: UNITS[m[0]],
    ),
    rule(
        rf"(?P<minus>(?<![\w])[-−])?(?P<sign>{_MONEY}) ?(?P<minus_after>(?<!\d[$€£￥¥])[-−])?"
        rf"(?P<number>{NUMBER})(?P<scale>[万亿千百十]+|[kKmMbB](?![A-Za-z])| ?(?:million|billion))?"
        r"(?:(?<=[\d万亿千百])(?:美元|欧元|元))?",  # ￥5元: said once
        _money,
    ),
    rule(
        rf"(?<![\d.A-Za-z-])(?P<first>{NUMBER})(?P<first_unit>%|％|{RANGE_UNITS})?{_DASH}(?P<last>{NUMBER})"
        rf"(?![\d.:/-]| ?=)(?P<unit>[%％]|(?:{_UNIT})(?![A-Za-z])|{RANGE_UNITS})?",
        lambda m: None if re.search(r" [-–] |至", m[0]) and not (m["unit"] or m["first_unit"]) else _range(m),
    ),
    rule(
        rf"(?P<number>(?:(?<![\d\w.%])[-−+]|(?<=[^\W\da-zA-Z_])[-−+])?{NUMBER}) ?(?P<sign>[%％‰])", _percent
    ),
    rule(rf"(?P<number>{_MINUS}{NUMBER}) ?(?P<unit>{_UNIT})(?![A-Za-z/²³])", _unit),
    rule(r"[−－﹣](?=\d)", _negative),
    rule(rf"{NUMBER}(?=[A-Za-z]{{0,3}}(?:\^-?[A-Za-z\d]|{_RAISED}))", lambda m: cardinal(m[0])),
    rule(
        rf"(?P<number>{_MINUS}(?<![A-Za-z\d.])\d+(?:\.\d+)?)(?P<e>[eE])(?P<exponent>[-−+]\d+)(?![A-Za-z\d]|\.\d)",
        lambda m: f"{_signed(m['number'])}{m['e']}{_signed(m['exponent'])}",
    ),
    rule(r"(?<![\d第.万亿千百十零〇+−-])(?<!\d[:：/])[2２](?![\d.])", _lone_two),
    rule(r"(?<=\d) ?[-−] ?(?=\d)", "减"),
    rule(r"(?<=\d) ?\* ?(?=\d)", "乘"),
    rule(r"\d+(?:\.\d+)?[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)*", _mixed),
    rule(r"[A-Za-z]+(?:-?\d[A-Za-z0-9]*)(?:\.\d+)*(?:-[A-Za-z0-9]+(?:\.\d+)*)*", _mixed),
    rule(_THOUSANDS, lambda m: cardinal(m[0])),
    rule(r"[¼½¾⅐-⅞²³¹⁰⁴-⁹₀-₉①-⑳⑴-⒇❶-❿Ⅰ-ⅻ]", _single_number),
]
_FOR_ALL = RULES + _SYMBOL + [rule(rf"(?i:{letter})", name) for letter, name in GREEK.items()]
_COPIED = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
_CLAUSE = re.compile(r"(?:[^，,。；;！!？?、\n：]|(?<=\d)：(?=\d))*(?:[，,。；;！!？?、\n：]|$)")


def _rules_at(character: str) -> Sequence[Rule]:
    return () if is_han(character) or character in "，。！？、 " else _FOR_ALL


def pieces(text: str) -> list[Piece]:
    """Pieces that cover the text, each with its spoken form."""
    found: list[Piece] = []
    start = None  # of the stretch that no own rule handles
    for piece in [*scan(text, _rules_at, _COPIED), Piece(len(text), len(text), "")]:
        if piece.by_rule and start is not None:
            found += _by_wetext(text, start, piece.start)
            start = None
        if piece.by_rule:
            found.append(piece)
        elif start is None:
            start = piece.start
    return found


def _by_wetext(text: str, start: int, stop: int) -> Iterator[Piece]:
    """Pieces of `text[start:stop]`, clause by clause."""
    for clause in _CLAUSE.finditer(text, start, stop):
        yield from _clause_by_wetext(text, *clause.span())


def _clause_by_wetext(text: str, start: int, stop: int) -> Iterator[Piece]:
    """Pieces of a clause; digits that wetext does not convert are said one by one."""
    part = text[start:stop]
    mappings = ()
    if any(c.isdecimal() for c in part):
        try:
            mappings = _normalizer().normalize_with_mapping(part).mappings
        except (AssertionError, ValueError, IndexError, RuntimeError):
            mappings = ()  # its grammar fails for some signs
    place = 0
    for m in mappings:
        yield from _copied(part, place, m.input_start, start)
        said = re.sub(r"\d", lambda d: DIGITS[int(d[0])], m.output_text.replace('\\"', '"'))
        yield Piece(start + m.input_start, start + m.input_end, said)
        place = m.input_end
    yield from _copied(part, place, len(part), start)


def _copied(part: str, start: int, stop: int, offset: int) -> Iterator[Piece]:
    for place in range(start, stop):
        said = part[place]
        yield Piece(offset + place, offset + place + 1, digits(said) or said, by_rule=False)


def is_speakable(character: str) -> bool:
    """Whether it is a Chinese character, a Latin letter, possibly accented, a space or punctuation."""
    return is_han(character) or character in _PUNCTUATION or spoken_en.is_speakable(character)


_TOKEN = re.compile(r"[^\W\d_\u3400-\u9fff]+(?:['’-][^\W\d_\u3400-\u9fff]+)*|\S")


def spoken_units(text: str) -> list[Unit]:
    """Written tokens (characters, words in Latin letters), each with its spoken words."""
    tokens = [m.span() for m in _TOKEN.finditer(text)]
    return units(text, pieces(text), tokens, is_speakable, _TOKEN)


def unknown(text: str) -> str:
    """Characters that no rule can handle, without duplicates."""
    return unknown_characters(pieces(text), is_speakable)
