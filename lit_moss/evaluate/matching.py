"""Rules, without a model, for whether a reply contains one of the reference answers.

| rule | what is compared |
|---|---|
| `match_raw` | UltraEval-Audio's `qa-exist-match`: an answer's lower-case tokens occur consecutively |
| `match_norm` | as above on normalised text, ignoring spaces: U.S. = US, well-known = wellknown |

`match_raw` does not handle numbers and abbreviations: "3" is not in "three". `match_norm` normalises reply
and answers alike. English: Whisper's English normaliser, then its basic one (numbers as digits, spelling,
titles). Before it, typographic quotes, `&`, `O'`, possessives and Roman numerals are converted, and brackets
in a reply are removed, but not their content; after it, `the` and a leading `a` or `an` of an answer are
removed. In answers of several words, ordinals equal cardinals (March 3rd = March 3, Henry VIII = Henry the
Eighth). Chinese: NFKC, simplified characters, numbers as digits, lower case, no punctuation; characters are
the words. Answers without content are ignored: an empty answer would be in every reply.

The normalisers need the extra `evaluate`.
Sources: github.com/OpenBMB/UltraEval-Audio; the normalisers of arXiv:2212.04356, appendix C.
"""

import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import lru_cache
from math import inf, prod
from typing import Any

from lit_moss.data.transcripts import edit_distance
from lit_moss.errors import UserError
from lit_moss.prepare.english_numbers import roman
from lit_moss.prepare.language import HAN

NORMALISER = "en: whisper English + basic, words joined or apart; zh: NFKC, opencc t2s, cn2an, characters"
_EXTRA = "pip install 'lit-moss[evaluate]'"
_PLAIN = str.maketrans(
    {**dict.fromkeys("‘’ʼ´`", "'"), **dict.fromkeys("“”„«»", '"'), **dict.fromkeys("‐‑‒–−", "-"), "—": " - "}
)
_BRACKETED = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_HAN_CHARACTER = re.compile(f"[{HAN}]")
# Contractions, which Whisper's normaliser expands; any other 's is a possessive, or part of a name.
_POSSESSIVE = re.compile(r"\b(?!(?:it|he|she|that|what|there|who|where|how|here|let)'s\b)(\w+)'s\b", re.I)
_ROMAN = re.compile(r"\b[IVX]{2,}\b")  # single letters are initials and pronouns
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)")
_ARTICLES = ("a", "an")
# No comma within a number: 1,000; one thousand, two hundred.
_CLAUSE_END = re.compile(
    r"[;!?]|:(?!\d)|\.(?!\d)|(?<!thousand)(?<!million)(?<!billion)(?<!trillion),(?!\d{3}(?!\d))"
)
_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_DIGITS = {digit: str(number) for number, digit in enumerate("一二三四五六七八九", start=1)} | {"两": "2"}
_DIGIT = f"[{''.join(_DIGITS)}]"
_TERM = re.compile(rf"(\d+(?:\.\d+)?|{_DIGIT})\s*([十百千万亿]+)")
# A single 十, 百 or 千 follows one digit: 12千瓦 is 12 kilowatts.
_ONE_TERM = (
    rf"(?:(?:\d+(?:\.\d+)?|{_DIGIT})\s*[十百千]?[万亿]+|(?:(?<![\d.])\d(?:\.\d+)?|{_DIGIT})\s*[十百千])"
)
# The last number has no unit, unless it belongs to the following text.
_MIXED = re.compile(rf"{_ONE_TERM}(?:\s*零?\s*{_ONE_TERM})*(?:(零?)(\d+)(?!\.?\d|[\d.]*\s*[十百千万亿]))?")


# --- rules --------------------------------------------------------------------------------------------------


def match_raw(reply: str, answers: Iterable[str], lang: str = "en") -> bool:
    """Whether the tokens of one of the answers occur consecutively in the reply.

    Args:
        reply: Text of the model, or transcript of its speech.
        answers: Reference answers; one match is sufficient.
        lang: Language of the question, ISO 639-1. In Chinese every character is a token.
    """
    tokens = raw_tokens(reply, lang)
    wanted = (raw_tokens(answer, lang) for answer in answers)
    return any(answer and _is_run(answer, tokens) for answer in wanted)


def match_norm(reply: str, answers: Iterable[str], lang: str = "en") -> bool:
    """Whether one of the answers is in the reply after normalisation; arguments as in `match_raw`.

    Raises:
        UserError: if the normalisers are not installed.
    """
    return any(_is_said(answer, reply, lang) for answer in answers)


def word_errors(reference: str, hypothesis: str, lang: str = "en") -> tuple[int, int]:
    """Number of errors (substitutions, deletions, insertions) and of reference words, both normalised as in
    `match_norm` but with articles; for Chinese, of characters."""
    expected, recognised = norm_tokens(reference, lang), norm_tokens(hypothesis, lang)
    return edit_distance(expected, recognised), len(expected)


def is_answerable(answers: Iterable[str], lang: str = "en") -> bool:
    """Whether one of the answers contains a token, so that a reply can be right."""
    return any(raw_tokens(answer, lang) for answer in answers)


# --- tokens -------------------------------------------------------------------------------------------------


def raw_tokens(text: str, lang: str = "en") -> list[str]:
    """Lower-case sequences of letters, digits and marks, and other single visible characters, after NFD."""
    tokens: list[str] = []
    is_open = False
    for character in unicodedata.normalize("NFD", text).lower():
        kind = unicodedata.category(character)[0]
        if kind in "LNM":
            alone = lang == "zh" and bool(_HAN_CHARACTER.match(character))
            if is_open and not alone:
                tokens[-1] += character
            else:
                tokens.append(character)
            is_open = not alone
        else:
            is_open = False
            if kind not in "ZC":
                tokens.append(character)
    return tokens


def norm_tokens(text: str, lang: str = "en") -> list[str]:
    """Normalised words; for Chinese characters, numbers and Latin words."""
    return list(_chinese(text) if lang == "zh" else _words(text, lang))


def _is_run(wanted: Sequence[str], tokens: Sequence[str]) -> bool:
    n = len(wanted)
    return any(list(tokens[i : i + n]) == list(wanted) for i in range(len(tokens) - n + 1))


def _is_said(answer: str, reply: str, lang: str) -> bool:
    if not raw_tokens(answer, lang):
        return False
    if lang == "zh":
        wanted, tokens = list(_chinese(answer)), list(_chinese(reply))
        return bool(wanted) and _is_joined_run(wanted, tokens)
    wanted = _wanted(answer, lang)
    if not wanted:  # the normaliser removes everything, such as a lone "um"
        return match_raw(reply, [answer], lang)
    tokens = list(_words(reply, lang))
    if "the" not in wanted:
        tokens = [token for token in tokens if token != "the"]
    if _is_joined_run(wanted, tokens):
        return True
    return len(wanted) > 1 and _is_joined_run(_cardinals(wanted), _cardinals(tokens))


def _wanted(answer: str, lang: str) -> list[str]:
    """Words of an answer without articles, unless it consists of articles only."""
    words = list(_words(_BRACKETED.sub(" ", answer), lang)) or list(_words(answer, lang))
    wanted = [word for word in words if word != "the"]
    if len(wanted) > 1 and wanted[0] in _ARTICLES:
        wanted = wanted[1:]
    return wanted or words


def _cardinals(tokens: Sequence[str]) -> list[str]:
    """Replaces ordinals by cardinals; Whisper's normaliser writes 1 as "one"."""
    numbers = (match[1] if (match := _ORDINAL.fullmatch(token)) else token for token in tokens)
    return ["1" if token == "one" else token for token in numbers]


def _is_joined_run(wanted: Sequence[str], tokens: Sequence[str]) -> bool:
    """Whether the characters of `wanted` equal those of consecutive whole tokens, ignoring spaces.

    Two adjacent numbers are not joined: 2 1 is not 21.
    """
    target = _joined(wanted)
    if target not in _joined(tokens):  # false for most answers: avoids the search
        return False
    for start in range(len(tokens)):
        text = ""
        for token in tokens[start:]:
            text = _joined([text, token] if text else [token])
            if len(text) >= len(target):
                break
        if text == target:
            return True
    return False


def _joined(tokens: Iterable[str]) -> str:
    return re.sub(r"(?<=\d) (?=\d)", "_", " ".join(tokens)).replace(" ", "")


# --- English, and other languages with spaces ---------------------------------------------------------------


@lru_cache(maxsize=2**17)  # TriviaQA has some 20 answers per question, at 1 ms each
def _words(text: str, lang: str) -> tuple[str, ...]:
    english, basic = _normalisers()
    text = unicodedata.normalize("NFKC", text.translate(_PLAIN))
    if lang == "en":
        text = text.replace("&", " and ")
        text = re.sub(r"\bMt\b\.?", "Mount", text)
        text = re.sub(r"\b([Oo])'(?=\w)", r"\1", text)  # otherwise O'Neil becomes "0 neil"
        text = _POSSESSIVE.sub(r"\1 s", text)
        text = _ROMAN.sub(lambda match: str(roman(match[0]) or match[0]), text)
        text = re.sub(r"\boh,", " ", text, flags=re.I)  # otherwise a zero
        # Whisper's normaliser removes text in brackets, where text replies often have their answer. It joins
        # numbers across commas (1984, fifty men -> 198450 men), so clauses are normalised one by one.
        clauses = _CLAUSE_END.split(re.sub(r"[()\[\]<>]", " ", text))
        text = " ".join(english(clause) for clause in clauses)
    return tuple(basic(text).split())


@lru_cache(maxsize=1)
def _normalisers() -> tuple[Any, Any]:
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise UserError(f"match_norm needs whisper-normalizer: {_EXTRA}") from error
    return EnglishTextNormalizer(), BasicTextNormalizer()


# --- Chinese ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2**17)
def _chinese(text: str) -> tuple[str, ...]:
    simplified, to_digits = _chinese_converters()
    text = simplified(unicodedata.normalize("NFKC", text.translate(_PLAIN))).lower().replace("〇", "零")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = _MIXED.sub(_added, text)
    text = re.sub(
        rf"(点[零{''.join(_DIGITS)}]+)(?=[百千]?[万亿])", r"\1 ", text
    )  # cn2an does not support 一点五亿
    with warnings.catch_warnings():  # it warns of every 万 that is not a number
        warnings.simplefilter("ignore")
        text = to_digits(text, "cn2an")
    text = _MIXED.sub(_added, text)
    return tuple(re.findall(rf"\d+(?:\.\d+)?|[{HAN}]|[^\W\d_{HAN}]+", text))


def _added(match: re.Match[str]) -> str:
    """1.3亿 -> 130000000, 3亿5000万 -> 350000000, 1万5 -> 15000; numbers without a sum stay separate.

    Numerals without digits are handled by cn2an.
    """
    if not re.search(r"\d", match[0]):
        return match[0]
    apart: list[Decimal] = []
    total = section = Decimal(0)  # up to the last 万 or 亿, and after it
    least: float = inf  # unit that the next number of the section must be below
    scale: float = inf  # the last 万 or 亿
    is_sum, unit = True, 1
    for number, units in _TERM.findall(match[0]):
        value = Decimal(_DIGITS.get(number) or number)
        small, big = (prod(_UNITS[u] for u in units if u in some) for some in ("十百千", "万亿"))
        unit = small * big
        apart.append(value * unit)
        is_sum &= value * small < least
        section, least = section + value * small, small
        if big > scale:  # 3万5千亿
            is_sum &= section < scale
            total, section = (total + section) * big, Decimal(0)
        elif big > 1:
            is_sum &= section * big < scale
            total, section = total + section * big, Decimal(0)
        if big > 1:
            least, scale = inf, big
    if match[2]:
        last = Decimal(match[2])
        apart.append(last)
        if not match[1] and len(match[2]) == 1:  # 1万5 is 1万5千
            last *= unit // 10
        is_sum &= last < unit
        section += last
    found = [total + section] if is_sum else apart
    return f" {' '.join(f'{value.normalize():f}' for value in found)} "


@lru_cache(maxsize=1)
def _chinese_converters() -> tuple[Any, Any]:
    try:
        import cn2an
        from opencc import OpenCC
    except ImportError as error:
        raise UserError(f"match_norm of Chinese needs opencc and cn2an: {_EXTRA}") from error
    return OpenCC("t2s").convert, cn2an.transform
