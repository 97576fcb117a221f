"""Removes or converts what only works in writing: addresses, brackets, code, emoji, quotes."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from lit_moss.prepare.adapt_pair import HAN_CHARACTER, PairRejected, length_in_words
from lit_moss.prepare.language import simplified

_LONGEST_CODE = 40
_OTHER_SCRIPTS = re.compile(
    r"[\u0400-\u052f\u0530-\u06ff\u0900-\u109f\u10a0-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\uac00-\ud7af]"
)
_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\u23e9-\u23fa\u200d\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]+"
)
_EMOTICON = re.compile(  # `<3 days` and `n <3` are not hearts
    r"(?:(?<=\s)|^)[:;=][-']?[)(DPp/|](?=\s|$|[.!?])|\^_\^"
    r"|(?<!\b[A-Za-z])(?<!\b[A-HJ-Za-z] )(?<![\d)])<3(?=\s|$|[.!?])"
    r"(?! (?:%|percent|[kcm]?m\b|k?g\b|(?:second|minute|hour|day|week|month|year|time|mile|point)s?\b))"
)
_OF_FRENCH = str.split(
    "le la les des est une dans pour que qui vous nous avec sur pas je et du au mon ma mes "
    "vais bien merci sont "
    "cette ce il elle comment pourquoi quel quelle où aux ou plus"
)
_OF_SPANISH = str.split(
    "el la los las es una por que con para del como pero muy se en un y lo su cómo qué está mi gracias dónde"
)
_OF_GERMAN = str.split(
    "der die das und ist ein eine nicht mit für auf den dem sich zu ich sie von wie wir es mir danke sehr gut"
)
_OF_ITALIAN, _OF_PORTUGUESE = ["il", "che", "di", "non", "per", "sono", "della"], ["é", "um", "uma", "não"]
_WORDS_OF = {"French": _OF_FRENCH, "Spanish": _OF_SPANISH, "German": _OF_GERMAN, "Italian": _OF_ITALIAN,
             "Portuguese": _OF_PORTUGUESE}  # fmt: skip
_OF_OTHERS = frozenset(word for words in _WORDS_OF.values() for word in words)
_EXPECTED = "only English and Chinese"
_OF_ENGLISH = frozenset(
    str.split(
        "the a an of to in is are was were be it that this and or for on with as at by from you i he she we "
        "they "
        "not "
        "what how why who when where which do does did can could will would should have has had my your me if"
    )
)
_CLASSICAL = re.compile(r"[之其者也矣焉哉乎兮曰吾汝尔弗夫]")
_MODERN = re.compile(r"[的了是在们这那吗吧呢么把被很]")


def cleaned(text: str) -> str:
    """Normalises line ends, spaces and apostrophes, and removes invisible characters."""
    text = (
        unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n")
    )
    text = re.sub(
        "[\u200b\u200c\u2060\ufeff\u00ad\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ue000-\uf8ff\ufffd]", "", text
    )
    text = re.sub("[\u00a0\u2000-\u200a\u202f\u3000\t]", " ", text)
    text = _EMOTICON.sub("", re.sub(rf" ?{_EMOJI.pattern}", "", text))
    return re.sub("[’‘ʼ´](?=s\\b|t\\b|re\\b|ll\\b|ve\\b|m\\b|d\\b)", "'", text).strip()


def check_language(text: str) -> None:
    """Rejects text that is neither English nor modern Chinese.

    Raises:
        PairRejected: with the reason "language" or "Classical Chinese".
    """
    other = _OTHER_SCRIPTS.search(text)
    if other:
        script = unicodedata.name(other.group(), "unknown").split()[0].capitalize()
        raise PairRejected("language", f"{script} script: {text[:40]}", _EXPECTED)
    han = HAN_CHARACTER.findall(text)
    if len(han) >= 12 and len(_CLASSICAL.findall(text)) / len(han) > 0.1 and not _MODERN.search(text):
        raise PairRejected("Classical Chinese", text[:40])
    # H₂ must not be taken for a word with an accent.
    words = re.findall(r"[^\W\d_]+", HAN_CHARACTER.sub(" ", unicodedata.normalize("NFKC", text).lower()))
    foreign = sum(word in _OF_OTHERS for word in words)
    accented = sum(not word.isascii() for word in words)
    english = sum(word in _OF_ENGLISH for word in words)
    if len(words) >= 4 and foreign + accented > english and (foreign + accented) / len(words) > 0.25:
        raise PairRejected("language", f"{_likeliest(words)}: {text[:40]}", _EXPECTED)


def _likeliest(words: Sequence[str]) -> str:
    """The language that has most of the words, as far as its common words are known here."""
    counts = {name: sum(word in own for word in words) for name, own in _WORDS_OF.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else "another language"


def simplified_chinese(text: str) -> str:
    """Converts traditional Chinese characters, if there are any, to simplified ones (OpenCC).

    `tw2s` also converts 著 and 甚麼, but would damage texts that are already simplified (显著).
    """
    if not HAN_CHARACTER.search(text):
        return text
    simple = simplified(text)
    changed = sum(a != b for a, b in zip(text, simple, strict=False))
    if changed >= max(2, 0.05 * len(HAN_CHARACTER.findall(text))):
        return simplified(text, "tw2s")
    return simple


def check_pictures(text: str) -> None:
    """Rejects drawings, boards, keys and other text that is looked at rather than read.

    Raises:
        PairRejected: with what was found.
    """
    wordless = [
        line
        for line in text.split("\n")
        if not re.search(r"[^\W\d_]{2,}|\||\d", line) and len(re.findall(r"[^\w\s.*_~=#-]", line)) >= 2
    ]
    if len(wordless) >= 2:
        raise PairRejected("drawing or code", wordless[0].strip()[:40])
    for line in text.split("\n"):
        bare = re.sub(r"\s|\*\*|__", "", line)
        is_rule_or_sum = re.fullmatch(r"[-=*_~#]+|[\d+*/=×÷().,^%-]*\d[\d+*/=×÷().,^%-]*", bare)
        if len(bare) >= 6 and "|" not in line and not is_rule_or_sum:
            signs = len(re.findall(r"[^\w.,!?'\"，。！？、：；“”（）$%-]", bare))
            if signs / len(bare) > 0.45:
                raise PairRejected("drawing or code", line.strip()[:40])
    moves = re.findall(
        r"(?<!\w)(?:[KQRBN][a-h]?x?[a-h][1-8]|O-O(?:-O)?|\d+\.\s?[a-h]x?[a-h]?[1-8])(?!\w)", text
    )
    if len(moves) >= 3:
        raise PairRejected("chess notation", " ".join(moves[:4]))
    blob = re.search(r"(?<!\S)(?!https?:|www\.)(?=\S*\d)(?=\S*[A-Za-z])[A-Za-z0-9+/=_-]{28,}(?!\S)", text)
    if blob:
        raise PairRejected("characters without words", blob.group()[:40])


_CODE_LINE = re.compile(
    r"^\s*(def \w+\(|class \w+[:({]|import \w+$|from \w+ import |#include|public (static|class)"
    r"|SELECT .+ FROM |"
    r"(const|let|var) \w+ ?=|for ?\(.*\) ?\{|if ?\(.*\) ?\{|\}|return .*;|\w+\(.*\);|\$ ?(sudo"
    r"|pip|cd|ls|git) )",
    re.MULTILINE,
)


def check_code(text: str) -> None:
    """Rejects code that is not marked by a fence.

    Raises:
        PairRejected: with the first line of the code.
    """
    match = _CODE_LINE.search(text)
    if match:
        raise PairRejected("code", match.group().strip()[:40])


def speak_code(code: str, chinese: bool) -> str:
    """Converts a name or a short call to words: `this.parseOptions` -> "this dot parse options".

    Raises:
        PairRejected: if the code is longer or contains other signs.
    """
    code = code.strip()
    if re.fullmatch(r"[A-Za-z0-9 ,.'!?-]*|[^\x00-\x7f]+", code) and not re.search(r"\w\.\w|(?<!\w)-", code):
        return _words_of_name(code)
    if len(code) > _LONGEST_CODE or re.search(r"[{}\\;^$~|@#&`?\n]|=>|->|::", code):
        raise PairRejected("code", code[:60])
    dot, of, equals, same = (
        ("点", "", "等于", "等于等于") if chinese else (" dot ", " of ", " equals ", " equals ")
    )
    tag = re.fullmatch(r"</?([A-Za-z]\w*)\s*/?>", code)
    if tag:
        return tag.group(1)
    if re.search(r"[<>]", code):
        raise PairRejected("code", code[:60])
    said = re.sub(r"\(\s*\)", "", code)
    said = re.sub(r"(?<=\w)[(\[]", of, said)
    said = re.sub(r"[()\[\]\"']", "", said)
    said = re.sub(r"\s*==\s*", same, said)
    said = re.sub(r"\s*=\s*", equals, said)
    for sign, word in (("+", "加" if chinese else "plus"), ("*", "乘以" if chinese else "times")):
        said = re.sub(rf"\s*\{sign}\s*", word if chinese else f" {word} ", said)
    said = re.sub(r"(?<!\w)--?(?=\w)", "" if chinese else "dash ", said)
    said = re.sub(r"\s*/\s*", " 斜杠 " if chinese else " slash ", said)
    said = re.sub(r"\.(?=\w)", dot, said)
    return re.sub(r"\s+", " ", _words_of_name(said)).strip(" :")


def _words_of_name(name: str) -> str:
    """`parseOptions`, `parse_options` -> "parse options"."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "\0", name.replace("_", " "))
    return re.sub(r"\0([A-Z])", lambda m: " " + m.group(1).lower(), split)


_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"'，。；！？、）)\]】》」]+", re.IGNORECASE)
_EMAIL = re.compile(r"[A-Za-z0-9._+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")


def without_addresses(text: str) -> str:
    """Removes URLs and e-mail addresses."""
    return _URL.sub(" ", _EMAIL.sub(" ", text))


def speak_addresses(text: str, chinese: bool) -> str:
    """Converts addresses to words; of long ones only the site is named."""
    dot, at, site = ("点", "艾特", "{}上的网页") if chinese else (" dot ", " at ", "a page on {}")

    def url(match: re.Match[str]) -> str:
        whole = match.group()
        end = re.search(r"[.,;:!?]*$", whole)
        tail = end.group() if end else ""
        bare = re.sub(r"^https?://|^www\.", "", whole[: len(whole) - len(tail)], flags=re.I)
        bare = re.sub(r"^www\.", "", bare, flags=re.I).rstrip("/")
        host, _, path = bare.partition("/")
        said = host.partition("?")[0].partition(":")[0].replace(".", dot).replace("-", " dash ")
        if not path and "?" not in host:
            return said + tail
        return site.format(said) + tail

    def email(match: re.Match[str]) -> str:
        name, _, host = match.group().partition("@")
        said = (
            name.replace(".", dot).replace("_", " underscore ").replace("-", " dash ").replace("+", " plus ")
        )
        return said + at + host.replace(".", dot).replace("-", " dash ")

    return _URL.sub(url, _EMAIL.sub(email, text))


_PLACEHOLDER = re.compile(r"\s?\[(?:\^\d+(?:\s*[,–-]\s*\d+)*|sic|citation needed|edit)\](?!\()", re.I)
_MARKS = r"\s?\[\d+(?:\s*[,–-]\s*\d+)*\]"
_MARK = re.compile(r"(?P<space>\s?)\[(?P<numbers>\d+(?:\s*[,–-]\s*\d+)*)\](?!\()")
# Text after which bracketed numbers are values: `It returns [1, 2]`.
_BEFORE_VALUES = re.compile(
    r"\b(?:is|are|was|were|be|been|equals?|returns?|returned|gives?|gave|prints?|printed|outputs?|yields?|contains?"
    r"|ha[sd]|have|gets?|becomes?|in|to|from|of|on|by|at|as|for|with|into|between|within|than|like|and|or|not"
    r"|lists?|arrays?|tuples?|vectors?|intervals?|range|sets?|values?|numbers?|elements?|results?|inputs?|sequence"
    r"|sorted|answer|call)$"
    r"|(?:[是为有在从到于对把将取和与或及得如令设]|等于|返回|输出|输入|打印|结果|数组|列表|区间|集合|向量|序列|范围"
    r"|元素|数字|数列|包含)$",
    re.IGNORECASE,
)
_ENDS_A_WORD = re.compile(
    r"(?:[^\W\d_]{2,}|(?<![^\W_])\d[\d,.]*[%°℃]?|[^\W_]{2,}[,;，；]|[.!?。！？；，]|[\w.!?。！？)）][)）\"”’'」』》]"
    r"|[)）”’」』》™®])$"
)
_CITATION = re.compile(
    r"\s?\((?:see )?[A-Z][\w'-]+(?: et al\.?| (?:and|&) [A-Z][\w'-]+)?,? (?:1[89]|20)\d\d[a-z]?\)"
)


def without_footnotes(text: str) -> str:
    """Removes footnote and citation marks, and the notes themselves."""
    text = re.sub(r"^\[\^[^\]]+\]:.*$", "", text, flags=re.MULTILINE)
    text = _PLACEHOLDER.sub("", re.sub(r"\s?\[\^[^\]]+\]", "", text))
    return _CITATION.sub("", _MARK.sub(lambda m: "" if _is_footnote(m) else m[0], text))


def _is_footnote(m: re.Match[str]) -> bool:
    """Whether bracketed numbers are footnote marks: `true[1]`, `It is true. [2]`; not `[0, 1]` or `a[1]`.

    Raises:
        PairRejected: if it is ambiguous.
    """
    numbers = [int(n) for n in re.findall(r"\d+", m["numbers"])]
    rises = all(b > a for a, b in pairwise(numbers))
    before = m.string[max(0, m.start() - 60) : m.start()].rstrip("*_~") if m["space"] != "\n" else ""
    before, after = re.sub(rf"(?:{_MARKS})+$", "", before), m.string[m.end() :]
    if not rises or numbers[0] < 1 or re.match(r" ?[=+]", after):
        return False
    is_refused = PairRejected("footnote or list", m[0].strip())
    if not before.strip() or before[-1] == "\n":  # a line in a list of sources
        if len(numbers) == 1 and re.match(r" ?[A-Z\u4e00-\u9fff]", after):
            raise is_refused
        return False
    if HAN_CHARACTER.match(before[-1]):
        if _BEFORE_VALUES.search(before):
            return False
        if len(numbers) > 1 and HAN_CHARACTER.match(after[:1]):
            raise is_refused
        return True
    if not m["space"]:
        return bool(_ENDS_A_WORD.search(before))
    if re.search(r"[.!?。！？][)）\"”’']?$", before):
        return bool(re.match(r"\s*(?:$|\[|[A-Z\u4e00-\u9fff\"“])|\s*\n", after))
    if re.search(r"\w$", before) and not _BEFORE_VALUES.search(before):
        raise is_refused
    return False


def without_brackets(text: str, chinese: bool) -> str:
    """Replaces brackets by commas."""
    comma = "，" if chinese else ", "
    text = re.sub(r"(?<=[A-Za-z])\((?:e?s|es)\)", lambda m: m.group()[1:-1], text)
    text = re.sub(r"[（(\[【［]\s*[)）\]】］]", "", text)
    text = re.sub(r"(^|[.!?。！？]\s*)[（(]([^()（）]+[.!?。！？])[)）]", r"\1\2", text)
    text = re.sub(r"[\[【［]([^\]】］]*)[\]】］]", r"\1", text)
    for _ in range(3):  # innermost first
        text = re.sub(r"\s*[（(]\s*([^()（）]*?)\s*[)）]\s*(?=([\w]?))", rf"{comma}\1{comma}", text)
    text = re.sub(r"[()（）\[\]{}【】［］｛｝〔〕]", "", text)
    text = re.sub(r"(^|[.!?。！？]\s*)[,，]\s*", r"\1", text)
    text = re.sub(r"[,，]\s*(?=[,，.!?;:。！？；：、]|$)", "", text)
    return re.sub(r" +(?=[,!?;:]|\.(?!\d))", "", text)


_FIGURE = r"[$€£¥￥]?\d+(?:,\d{3})*(?:[.:]\d+)?"
_DASHED = re.compile(
    rf"(?<![A-Za-z\d_.,:/$€£¥￥–—-])(?P<first>{_FIGURE})"
    r"(?P<unit> ?(?:[%°][CF]?|[ap]\.m\.|[A-Za-z]+|[\u4e00-\u9fff]))?"
    rf"(?: ?(?:—+|--) ?| – )(?P<last>{_FIGURE})(?![\d,.:]*\d| ?[–—-])(?P<last_unit> ?[ap]\.?m\b)?"
)
_OPERAND = r"(?:\d[\d.,]*|[A-Za-z](?![A-Za-z]))"
_MINUS = re.compile(rf"(?<=\d|\b[A-Za-z]) – (?={_OPERAND}(?: [–+*×/-] {_OPERAND})* ?=)")
# Numbered things: `Step 1 – 2 eggs` is not a range.
_NUMBERED = re.compile(
    r"\b(?:chapter|step|lesson|part|section|level|episode|season|round|question|rule|tip|day|week|unit|stage|phase"
    r"|volume|number|no\.|exercise|example|type|option) $|(?:第|步骤|问题|例|图|表|规则|方法|技巧) ?$",
    re.IGNORECASE,
)


def speak_ranges(text: str, chinese: bool) -> str:
    """Replaces dashes between two numbers by words, or by minus before `=`; other dashes are kept.

    `100 – 200 people` -> "100 to 200 people"; not `In 2020 – 3 years later`, whose numbers decrease.
    """

    def spoken(m: re.Match[str]) -> str:
        first, last = (float(re.sub("[^\\d.]", "", m[name].replace(":", "."))) for name in ("first", "last"))
        unit = (m["unit"] or "").strip()
        is_time = bool(m["last_unit"]) or (":" in m["first"] and ":" in m["last"])
        same = is_time or not unit or text[m.end("last") :].lstrip().startswith(unit)
        years = [re.fullmatch(r"1\d{3}|20\d\d", m[name]) for name in ("first", "last")]
        is_range = (
            same
            and (is_time or first < last)
            and (not years[0] or bool(years[1]) or unit)
            and not re.match(r"0\d", m["first"])
            and not _NUMBERED.search(text[max(0, m.start() - 12) : m.start()])
        )
        if not is_range:
            return m[0]
        return f"{m['first']}{m['unit'] or ''}{'到' if chinese else ' to '}{m['last']}{m['last_unit'] or ''}"

    return _DASHED.sub(spoken, _MINUS.sub(" - ", text))


_NUMBER_AHEAD = r"(?=[-−+]?[$€£¥￥]?\.?\d)"
_ITEM_AHEAD = r"(?=[-−+]?[$€£¥￥]?\.?\d|[\w$€£¥￥])"
_NO_TAG = r"(?!/?[A-Za-z]\w*\s?/?>)"
_ENGLISH_SIGNS = (
    (r"\bE\.g\.,?\s*", "For example, "), (r"\bI\.e\.,?\s*", "That is, "),
    (r"\be\.g\.,?\s*", "for example, "), (r"\bi\.e\.,?\s*", "that is, "),
    (r"\betc\.(?=\s+[a-z])", "and so on"),
    (r",?\s*\betc\.(?=\s*$|\s+[A-Z])", " and so on."), (r",?\s*\betc\.", " and so on"),
    (r"\bw/o\b", "without"),
    (r"\band/or\b", "or"), (r"\b(he|she|his|him)/(she|he|her|hers)\b", r"\1 or \2"),
    (r"\bvs\.?(?=\s)", "versus"),
    (r"(?<=\w)\s*&\s*(?=\w)", " and "), (r"(?<=\d)\s?~\s?(?=\d)", " to "),
    (rf"~\s?{_NUMBER_AHEAD}", "about "), (r"≈\s?", "about "),
    (r"(?<!\w)#(?=\d)", "number "),
    (r"(?<!\w)#(?=[A-Za-z])", "hashtag "), (r"(?<!\w)@(?=\w)", "at "), (r"(?<=\w) \+ (?=[\w$])", " plus "),
    (r"\s*(?:→|⇒|➜|=>|->|-->)\s*", " to "), (r"(?<=\d)\s*[x×]\s*(?=\d)", " by "),
    (r"(?<=\w) = (?=[\w$])", " equals "),
    (rf"(?:\s|(?<=[\w%°)])|^)>=\s?{_ITEM_AHEAD}", " at least "),
    (rf"(?:\s|(?<=[\w%°)])|^)<=\s?{_ITEM_AHEAD}", " at most "),
    (rf"(?<!\S)>\s?{_NUMBER_AHEAD}", "more than "), (rf"(?<!\S)<\s?{_NUMBER_AHEAD}", "less than "),
    # Tags and menus are not comparisons: `<b>`, `File > Open`.
    (rf"(?<=[\w%°])\s?<{_NO_TAG}\s?{_ITEM_AHEAD}", " less than "),
    (rf"(?<=[\w%°])\s?>\s?{_NUMBER_AHEAD}|(?<=[a-z\d%°]) ?> ?(?=[a-z$€£¥￥])|(?<=\b[A-Z])>(?=[A-Z]\b)",
     " greater than "), (r"[™®©]", ""),
    (r"(?<=[a-z])/(?=[a-z]{3})", " or "),
)  # fmt: skip
_CHINESE_SIGNS = (
    (r"(?<=\w)\s*&\s*(?=\w)", "和"), (rf"(?<!\d)~\s?{_NUMBER_AHEAD}", "约"), (r"≈\s?", "约"),
    (r"(?<=\d)\s?~\s?(?=\d)", "到"), (r"(?<!\w)#(?=\d)", "第"),
    (r"(?<=\w)\s?\+\s?(?=\w)", "加"), (r"\s*(?:→|⇒|➜|=>|->|-->)\s*", "，然后"),
    (r"(?<=\w)\s?=\s?(?=\w)", "等于"), (rf"\s?>=\s?{_ITEM_AHEAD}", "大于等于"),
    (rf"\s?<=\s?{_ITEM_AHEAD}", "小于等于"), (rf"(?<![<>])\s?<{_NO_TAG}\s?{_ITEM_AHEAD}", "小于"),
    (rf"(?<![<>])\s?>\s?{_ITEM_AHEAD}", "大于"),
    (r"(?<=\d)\s*[x×]\s*(?=\d)", "乘"), (r"[™®©]", ""), (r"(?<!\w)@(?=\w)", "艾特"),
)  # fmt: skip


_OF_MENUS = re.compile(
    r"\b(?:click|tap|select|choose|open|press|navigate|go to|menus?|settings|file|edit|view|tools|options"
    r"|preferences|system)\b|点击|打开|进入|选择|设置|菜单|依次|选项|工具|文件|编辑|视图",
    re.IGNORECASE,
)


def speak_comparisons_at_line_starts(text: str, chinese: bool) -> str:
    """Converts `> 5 kg is much.` and `>=5` to words, which Markdown would take for a quotation."""
    least, more = ("大于等于", "大于") if chinese else ("At least ", "More than ")
    text = re.sub(rf"^[ \t]*>=\s?{_ITEM_AHEAD}", least, text, flags=re.MULTILINE)
    if len(re.findall(r"^[ \t]*>", text, flags=re.MULTILINE)) == 1:
        text = re.sub(rf"\A\s*>[ \t]?{_NUMBER_AHEAD}", more, text)
    return text


def _without_menus(text: str) -> str:
    """Removes the signs of `File > Open` and of single tags."""

    def clause(m: re.Match[str]) -> str:
        if not _OF_MENUS.search(m[0]):
            return m[0]
        return re.sub(r" ?> ?(?=[A-Z\u4e00-\u9fff])", lambda s: " " if s[0] != ">" else "", m[0])

    text = re.sub(r"</?([A-Za-z]\w*)\s?/?>", r" \1 ", text)
    text = re.sub(r"(?<!\w)>[_.]<(?!\w)", "", text)  # an emoticon
    return re.sub(r"[^,.;!?，。；！？\n]+", clause, text)


def without_signs(text: str, chinese: bool) -> str:
    """Converts signs to words, and removes quotation marks, emoji and stray signs.

    Raises:
        PairRejected: if `<` or `>` remains: its meaning would be lost.
    """
    arrow = re.search(r"<-+>|<=+>|<<|>>|<>", text)
    if arrow:
        raise PairRejected("sign", arrow.group())
    text = _without_menus(text)
    if chinese:  # 《红楼梦》 in other brackets
        text = re.sub(r"<((?:(?![且或而并])[\u4e00-\u9fff]){2,20})>", r"\1", text)
    for pattern, word in _CHINESE_SIGNS if chinese else _ENGLISH_SIGNS:
        text = re.sub(pattern, word, text)
    left = re.search(r".{0,20}[<>].{0,20}", text)
    if left:
        raise PairRejected("sign", left.group().strip())
    text = re.sub(r"[\"“”„«»「」『』《》〈〉]", "", text)
    text = re.sub(r"(?<!\w)[‘']+|['’]+(?!\w)", "", text) if text.count("'") + text.count("‘") > 1 else text
    text = re.sub(r"\s*——+\s*|\s*(?:—|--+)\s*|\s+–\s+", "，" if chinese else ", ", text)
    text = re.sub(r"(?:\.{3,}|…+)(?=\s*(?:$|[A-Z]))", "。" if chinese else ".", text)
    text = re.sub(r"\.{3,}|…+", "，" if chinese else ", ", text)
    text = re.sub(r"([!?！？])[!?！？]+", r"\1", text)
    text = re.sub(r"(?<=\d)\s*°\s*(?![CF\w])", "度" if chinese else " degrees", text)
    text = re.sub(r"[*_`^|<>\\~•·■●◆▪►✓✔]+", " ", text)
    text = re.sub(r"[,，]\s*(?=[,，.!?;:。！？；：])", "", text)
    text = re.sub(r"^[\s,，;；:：.。、]+", "", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"(?<=[\u3000-\u9fff，。]) | (?=[\u3000-\u9fff，。])", "", text) if chinese else text
    return re.sub(r"\s+(?=[,.!?;:](?:\s|$))", "", text).strip()


def shortened(text: str, limit: int) -> str | None:
    """The text up to the last sentence end within a number of words; None if too little would remain."""
    sentences = re.findall(r".+?(?:[.!?](?=\s|$)|[。！？]|$)\s*", text, flags=re.DOTALL)
    kept = ""
    for sentence in sentences:
        if length_in_words(kept + sentence) > limit:
            break
        kept += sentence
    return kept.strip() if length_in_words(kept) >= 0.5 * limit else None
