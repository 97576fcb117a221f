r"""Converts simple formulas (LaTeX or plain) to words: `\frac{a}{2} = x^2` -> "a over 2 equals x squared".

Formulas that cannot be followed by ear are rejected: sums, integrals, limits, matrices, sets, long ones.
"""

import re
from dataclasses import dataclass

from lit_moss.prepare.adapt_pair import HAN_CHARACTER, PairRejected

_LONGEST_WORDS = 30
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\d+(?:[.,]\d+)*|[A-Za-z]|\s+|<=|>=|!=|->|=>|.", re.DOTALL)

# Sign or command -> (English, Chinese).
_SIGNS = {
    "+": ("plus", "加"), "-": ("minus", "减"), "−": ("minus", "减"), "=": ("equals", "等于"),
    "*": ("times", "乘以"), "×": ("times", "乘以"), "·": ("times", "乘以"), "⋅": ("times", "乘以"),
    "/": ("over", "除以"), "÷": ("divided by", "除以"), "±": ("plus or minus", "正负"),
    "<": ("is less than", "小于"), ">": ("is greater than", "大于"), "≤": ("is at most", "小于等于"),
    "≥": ("is at least", "大于等于"), "≠": ("is not equal to", "不等于"), "≈": ("is about", "约等于"),
    "→": ("to", "到"), "%": ("percent", "%"), "°": ("degrees", "度"), "∞": ("infinity", "无穷大"),
    "π": ("pi", "派"), "√": ("the square root of", "根号"), "!": ("factorial", "的阶乘"),
    "'": ("prime", "撇"),
    ",": (",", "，"), ":": ("to", "比"), ".": (".", "。"), "∠": ("angle", "角"), "△": ("triangle", "三角形"),
}  # fmt: skip
_COMMANDS = {
    r"\times": "×", r"\cdot": "×", r"\div": "÷", r"\pm": "±", r"\le": "≤", r"\leq": "≤", r"\ge": "≥",
    r"\geq": "≥", r"\ne": "≠", r"\neq": "≠", r"\approx": "≈", r"\to": "→", r"\rightarrow": "→", r"\infty":
    "∞", r"\pi": "π", r"\circ": "°", r"\%": "%", r"\lt": "<", r"\gt": ">", r"\angle": "∠",
    r"\triangle": "△", r"\prime": "'",
    "<=": "≤", ">=": "≥", "!=": "≠", "->": "→",
}  # fmt: skip
_FUNCTIONS = {
    r"\sin": ("sine", "正弦"), r"\cos": ("cosine", "余弦"), r"\tan": ("tangent", "正切"),
    r"\log": ("log", "log"),
    r"\ln": ("natural log", "自然对数"), r"\exp": ("e to the power of", "e的幂"),
}  # fmt: skip
_GREEK = str.split(
    "alpha beta gamma delta epsilon theta lambda mu rho sigma tau phi omega Delta Sigma Omega eta zeta "
    "kappa nu xi psi chi"
)
_GREEK_LETTERS = dict(zip("αβγδεθλμρστφωΔΣΩηζκνξψχ", (g.lower() for g in _GREEK), strict=True))
_SKIPPED = {
    r"\left",
    r"\right",
    r"\,",
    r"\;",
    r"\!",
    r"\:",
    r"\ ",
    r"\quad",
    r"\qquad",
    r"\displaystyle",
    "$",
}
_WORDS_INSIDE = {r"\text", r"\mathrm", r"\textbf", r"\mathbf", r"\mbox", r"\operatorname", r"\textit"}
_FRACTIONS = {("1", "2"): "one half", ("1", "3"): "one third", ("2", "3"): "two thirds",
              ("1", "4"): "one quarter",
              ("3", "4"): "three quarters"}  # fmt: skip
_POWERS = {"2": ("squared", "的平方"), "3": ("cubed", "的立方")}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


@dataclass
class _Reader:
    tokens: list[str]
    at: int = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token


def spoken_formula(formula: str, chinese: bool) -> str:
    """Converts a formula to words.

    Args:
        formula: LaTeX without its dollar signs, or plain signs.
        chinese: Whether to use Chinese words.

    Raises:
        PairRejected: if the formula cannot be followed by ear.
    """
    plain = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", formula)
    plain = re.sub(r"[₀-₉]+", lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", plain)
    reader = _Reader([t for t in _TOKEN.findall(plain) if not t.isspace() and t not in _SKIPPED])
    words = _Formula(reader, chinese, formula).sequence("")
    if len(words) > _LONGEST_WORDS:
        raise PairRejected("long formula", formula[:80])
    return _join(words)


class _Formula:
    """Recursive descent parser that converts a formula's tokens to a list of words."""

    def __init__(self, reader: _Reader, chinese: bool, source: str) -> None:
        self.reader, self.language, self.source = reader, int(chinese), source

    def sequence(self, end: str) -> list[str]:
        """Words up to the closing token `end`, which is consumed."""
        words: list[str] = []
        while True:
            token = self.reader.peek()
            if token == "":
                if end:
                    raise self.refusal()
                return words
            if token == end:
                self.reader.take()
                return words
            words += self.term(words)

    def term(self, before: list[str]) -> list[str]:
        """The next atom with its exponents and indices."""
        token = self.reader.peek()
        sign = _COMMANDS.get(token, token)
        if sign in _SIGNS:
            self.reader.take()
            if sign == "/" and before and before[-1][-1].isdigit() and not self.language:
                return ["divided", "by"]
            return [self.sign(sign, before)]
        atom, grouped = self.atom()
        grouped_power = False
        while self.reader.peek() in ("^", "_", "!", "'"):
            atom, grouped_power = self.raised(atom, grouped), True
        if grouped and not grouped_power and before and self.language:
            return [
                *(["乘以"] if before[-1][-1].isalnum() and before[-1].isascii() else []),
                *self.sum_of(atom),
            ]
        if grouped and not grouped_power and before:
            signs = {words[0] for words in _SIGNS.values()}
            if before[-1] not in signs and before[-1][-1].isalnum() and before[-1] != "by":
                return ["times", "the", "quantity", *atom]  # 2(a + b)
            if before[-1] in ("times", "minus", "over", "by"):
                return ["the", "quantity", *atom]
        return atom

    def sum_of(self, atom: list[str]) -> list[str]:
        """In Chinese, marks the content of parentheses as one quantity."""
        signs = set(atom) & {"加", "减", "乘以", "除以", "等于"}
        if not signs:
            return atom
        if signs not in ({"加"}, {"减"}):
            raise self.refusal()
        return [*atom, "的和" if signs == {"加"} else "的差"]

    def sign(self, sign: str, before: list[str]) -> str:
        negative = sign in "-−" and (not before or before[-1] in {w[self.language] for w in _SIGNS.values()})
        if negative and self.language:
            return "负"
        return _SIGNS[sign][self.language]

    def atom(self) -> tuple[list[str], bool]:
        """Words of one operand, and whether it is a parenthesised sum."""
        token = self.reader.take()
        if token == "{":
            return self.sequence("}"), False
        if token in ("(", "["):
            inside = self.sequence(")" if token == "(" else "]")
            return inside, len(inside) > 1
        if token in (r"\frac", r"\dfrac", r"\tfrac"):
            return self.fraction(), False
        if token == r"\boxed":
            return self.group(), False
        if token == r"\sqrt":
            return self.root(), False
        if token in _WORDS_INSIDE:
            return self.words_inside(), False
        if token in _FUNCTIONS:
            return self.function(token), False
        if token.lstrip("\\").lower() in map(str.lower, _GREEK) and token.startswith("\\"):
            return [token[1:].lower()], False
        if token in _GREEK_LETTERS:
            return [_GREEK_LETTERS[token]], False
        if token.isalnum() and token.isascii():
            return self.letter(token), False
        raise self.refusal()

    def letter(self, token: str) -> list[str]:
        """A number or a variable; f(x) is "f of x"."""
        if token not in ("f", "g", "h", "P") or self.reader.peek() != "(":
            return [token]
        self.reader.take()
        inside = self.sequence(")")
        return [token, *inside] if self.language else [token, "of", *inside]

    def fraction(self) -> list[str]:
        above, below = self.group(), self.group()
        if self.language:
            return [*below, "分之", *above]
        if len(above) == len(below) == 1 and (above[0], below[0]) in _FRACTIONS:
            return _FRACTIONS[above[0], below[0]].split()
        return [*above, "over", *below]

    def root(self) -> list[str]:
        degree = ""
        if self.reader.peek() == "[":
            self.reader.take()
            degree = _join(self.sequence("]"))
        inside = self.group()
        if self.language:
            if not degree:
                return ["根号", *inside]
            return [*inside, {"3": "的立方根"}.get(degree, f"的{degree}次方根")]
        ordinal = {"": "square", "3": "cube", "4": "fourth", "5": "fifth", "n": "n-th"}.get(degree)
        if ordinal is None:
            raise self.refusal()
        return ["the", ordinal, "root", "of", *inside]

    def words_inside(self) -> list[str]:
        if self.reader.take() != "{":
            raise self.refusal()
        letters = ""
        while self.reader.peek() not in ("}", ""):
            letters += self.reader.take()
        self.reader.take()
        return [letters]

    def function(self, token: str) -> list[str]:
        name = _FUNCTIONS[token][self.language]
        squared: list[str] = []
        while self.reader.peek() in ("^", "_"):
            squared = self.raised(squared, False)
        if self.language:
            return [name, *squared]
        return [name, *squared, *([] if token == r"\exp" else ["of"])]

    def group(self) -> list[str]:
        """The argument of a command: `{...}` or one token."""
        return self.atom()[0]

    def raised(self, base: list[str], grouped: bool) -> list[str]:
        kind = self.reader.take()
        if kind in ("!", "'"):
            return [*base, _SIGNS[kind][self.language]]
        if self.reader.peek() in (r"\circ", r"\prime"):
            return [*base, _SIGNS[_COMMANDS[self.reader.take()]][self.language]]
        if kind == "^" and self.reader.tokens[self.reader.at : self.reader.at + 3] == ["{", r"\circ", "}"]:
            self.reader.at += 3
            return [*base, _SIGNS["°"][self.language]]
        negative = self.reader.peek() == "-"
        if negative:
            self.reader.take()
        exponent = (["负" if self.language else "minus"] if negative else []) + self.group()
        if kind == "_":
            numeral = len(exponent) == 1 and exponent[0].isdigit()
            return [*base, *exponent] if numeral or self.language else [*base, "sub", *exponent]
        power = _POWERS.get(_join(exponent))
        if power and grouped and self.language:
            return [*self.sum_of(base), power[1]]
        if power:
            all_of_it = ["all"] if grouped else []
            return [*base, *all_of_it, power[self.language]]
        if self.language:
            return [*base, "的", *exponent, "次方"]
        return [*base, "to", "the", "power", "of", *exponent]

    def refusal(self) -> PairRejected:
        return PairRejected("formula", self.source.strip()[:80])


def _join(words: list[str]) -> str:
    """Joins words with spaces, but without spaces next to Chinese characters or before commas."""
    text = " ".join(word for word in words if word)
    text = re.sub(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])", "", text)
    if HAN_CHARACTER.search(text):
        text = re.sub(r"(?<=\d) (?=[a-z])|(?<=\b[a-z]) (?=[a-z]\b)", "", text)
    return re.sub(r" (?=[,.%])", "", text)


_OPERAND = (
    r"(?:[-−]?\(?[-−]?(?:√\s?)?(?:\d+(?:[.,]\d+)*\s?%?°?)?(?:[A-Za-z]{1,2}(?=[\^²³⁴])|[A-Za-zπ](?![A-Za-z]))?"
    r"(?:\^(?:\{[-+\w]+\}|\([-+\w]+\)|-?\w+)|[²³⁴⁵⁶⁷⁸⁹ⁿ]+)?\)?(?:[²³]|\^\d)?)"
)
_RUN = re.compile(
    rf"(?<![\w$€£¥.^])(?=[-−(√\dA-Za-zπ]){_OPERAND}(?:\s*[-−+*/=×÷±<>≤≥≠≈·]=?\s*{_OPERAND})*(?![\w^])"
)
_STRONG = re.compile(
    r"[=^×÷±≤≥≠≈²³⁴√π]|(?<=[\d\w)]) ?\* ?(?=[\d\w(])|(?<=[\w)]) [+<>] (?=[\w(-])|(?<=\d) [-−/] (?=\d)"
)


def speak_plain_formulas(text: str, chinese: bool) -> str:
    """Converts formulas in plain signs ("x^2 + 1 = 5", "3 × 4") to words.

    Raises:
        PairRejected: if a formula cannot be followed by ear.
    """

    def spoken(match: re.Match[str]) -> str:
        run = match.group()
        if not _STRONG.search(run) or not re.search(r"\w", run):
            return run
        end = re.search(r"[\s=+*/<>-]*$", run)
        core, rest = (run[: end.start()], run[end.start() :]) if end and end.group() else (run, "")
        try:
            return spoken_formula(core, chinese) + rest
        except PairRejected as error:
            if error.reason == "long formula":
                raise
            return run

    return _RUN.sub(spoken, text)


_MATH = re.compile(
    r"\$\$(?P<a>.+?)\$\$|\\\[(?P<b>.+?)\\\]|\\\((?P<c>.+?)\\\)"
    r"|(?<![\\$\w])\$(?P<d>(?!\s)[^$\n]+?(?<!\s))\$(?!\d)",
    re.DOTALL,
)
_MATH_SIGN = re.compile(r"[\\^_=+*/<>{}|()-]|^\W*[A-Za-z]\W*$|^-?\d+([.,]\d+)?$")
_MOST_FORMULAS = 8


def speak_latex(text: str, chinese: bool) -> str:
    """Converts LaTeX formulas in a text to words.

    Raises:
        PairRejected: if a formula cannot be followed by ear, or there are too many.
    """
    if r"\begin{" in text:
        raise PairRejected("formula", "environment")
    found = 0

    def spoken(match: re.Match[str]) -> str:
        nonlocal found
        inside = next(g for g in match.groups() if g is not None)
        if match.group("d") and not _MATH_SIGN.search(inside):
            return match.group()
        found += 1
        if found > _MOST_FORMULAS:
            raise PairRejected("formulas", found)
        words = spoken_formula(inside.strip(), chinese)
        after = text[match.end() : match.end() + 1]
        own_line = match.group("a") or match.group("b")
        return f" {words}{'' if not own_line or after in ('.', ',') else '.'} " if own_line else words

    return _MATH.sub(spoken, text)
