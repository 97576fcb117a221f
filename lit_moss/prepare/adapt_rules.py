"""Adapts questions and answers for speech by rules: offline and deterministic.

Rules see the form of a text, not its meaning. They convert formulas, lists and small tables to words, remove
what is only visual, shorten texts at the end of a sentence, and reject the rest. They do not correct facts,
reorder an answer or rewrite unsafe content, which requires a model (`adapter: endpoint`).
"""

import re
from collections.abc import Callable, Sequence

from lit_moss.prepare import adapt_text as plain
from lit_moss.prepare.adapt_latex import speak_latex, speak_plain_formulas
from lit_moss.prepare.adapt_markdown import speak_markdown, strip_html
from lit_moss.prepare.adapt_pair import (
    Pair,
    PairRejected,
    Side,
    is_chinese,
    length_in_words,
    problem_of,
    word_limit,
)
from lit_moss.prepare.spoken import unspeakable

_OVER = 1.1  # "slightly over is allowed"
_MOST_TIMES_LONGER = 4  # a longer answer would lose its meaning when cut
_FENCE = re.compile(
    r"(^ {0,3}(?:```|~~~).*?(?:^ {0,3}(?:```|~~~)\s*$|\Z)|`[^`\n]+`)", re.DOTALL | re.MULTILINE
)

# Requested formats, and whether the question makes sense without them.
_NEEDS_FORMAT = re.compile(
    r"\b(write|create|give|generate|implement|make|build|show)\b[^.?!]{0,40}\b(code|function"
    r"|script|program|regex"
    r"|regular expression|query|html|css|sql|json|yaml|xml|csv|latex)\b|\bascii[ -]art\b"
    r"|\bdraw\b|\bspreadsheet\b"
    r"|\bin (python|javascript|java|c\+\+|sql|html|latex|json)\b|\bemojis?\b|\b(in|with) (all "
    r")?(bold|italics|caps|uppercase)\b"
    r"|写(一个|一段|个)?[^，。？！]{0,12}(代码|程序|函数|脚本|正则)|画(一|个|出)|用(Python|Java|C\+\+|SQL|JSON)|字符画|表情符号",
    re.IGNORECASE,
)
_IMPOSSIBLE = (
    (r"\\boxed|\bboxed?\b[^.?!]{0,12}\banswer\b|\banswer\b[^.?!]{0,20}\bbox(ed)?\b", "a box", "方框"),
    (
        r"\b(in|as|into|using|with) (a|an|the)?\s?(\w+ )?table\b|\btable format\b|\btabular\b|表格",
        "a table",
        "表格",
    ),
    (r"\bmarkdown\b", "Markdown", "Markdown格式"),
    (r"\bheadings?\b|\bheaders\b|小标题", "headings", "小标题"),
)
_OPENINGS = re.compile(
    r"^(as an? (ai|artificial intelligence)( language)?( model| assistant)?( (developed|created"
    r"|trained) by \w+)?,\s*"
    r"|作为(一个|一名)?(AI|人工智能)(语言)?(模型|助手|助理)?[，,]\s*"
    r"|(sure[,!.] |certainly[,!.] |of course[,!.] )?here('s| is) (the|an?|your) (adapted"
    r"|rewritten|spoken|converted|revised)"
    r"[^:.\n]{0,40}[:.]\s*|(answer|a|response|答案|回答|答)\s*[:：]\s*)",
    re.IGNORECASE,
)  # fmt: skip
_QUESTION_OPENING = re.compile(  # also the number of a question among others
    r"^(question|q|user|human|问题|问)\s*[:：]\s*"
    r"|^\s*\d{1,3}([.)．]\s+|、\s*(?=[^\s\d]))(?=\S)(?!(.*\n)+\s*\d+[.)、．])",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^(i'm sorry,? but i can('t|not)|sorry,? (but )?i can('t|not)|i can('t|not) (help|assist)"
    r"|i('m| am) (unable|not able) to"
    r"|(很)?抱歉，?我(不能|无法)|对不起，?我(不能|无法))",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^[ \t]*\**([A-Z][A-Za-z]+(?: [A-Za-z]+){0,2}|[\u4e00-\u9fff]{2,6})\**[:：]\**[ \t]+"
                    r"(?=\S)|"
                    r"^[ \t]*([\u4e00-\u9fff]{2,6})：(?=[^\s\d])", re.MULTILINE)  # fmt: skip
_BOLD_LABEL = re.compile(r"(\*\*|__)([^*_\n]{1,40}?)([:：]\1|\1\s?[:：])[ \t]*(?=\S)")
_OPTION = re.compile(r"^[ \t]*[(（]?([A-F])[).）、][ \t]*(?=\S)", re.MULTILINE)
_STYLES = (
    ("sad", r"^(i'm (so |very |really )?sorry (to hear|for your)|my condolences|很遗憾听到|节哀|真难过)"),
    ("happy", r"^(congratulations|happy (birthday|new year|anniversary)|恭喜|祝贺|生日快乐|新年快乐)"),
    ("excited", r"^(wow|amazing|that's (amazing|fantastic|awesome)|太棒了|太好了|哇)"),
)


class RuleAdapter:
    """Adapts pairs by rules."""

    def adapt(self, question: str, answer: str, context: Sequence[str] = ()) -> Pair:
        """The adapted pair; earlier turns are ignored.

        Raises:
            PairRejected: if the pair cannot be adapted.
        """
        apology = _apology(question)
        limit = word_limit(question)
        asked, _ = _spoken(question, question, _QUESTION_OPENING, limit, shorten=False)
        said, shorter = _spoken(answer, question, _OPENINGS, limit, shorten=True)
        if asked.strip(" .?!。？！").lower() == said.strip(" .?!。？！").lower():
            raise PairRejected("answer repeats the question", said[:60])
        quality = _quality(said, answer, shorter)
        if apology:
            said = apology + ("" if is_chinese(apology) else " ") + said
        return Pair(_side(question, asked, False), _side(answer, said, shorter), quality)


def _side(written: str, said: str, shorter: bool) -> Side:
    same = said == written.strip()
    return Side("PASSTHROUGH" if same else "ADAPT", said, _style(said), shorter)


def _spoken(
    written: str, question: str, opening: re.Pattern[str], limit: int, shorten: bool
) -> tuple[str, bool]:
    """The adapted text, and whether it was shortened."""
    text = plain.cleaned(written)
    # Text without words of its own ("x = 5") has the language of the question.
    chinese = is_chinese(text if re.search(r"[A-Za-z]{2}|[\u4e00-\u9fff]", text) else question)
    plain.check_language(plain.without_addresses(_without_math(text)))
    text = plain.simplified_chinese(text)
    text = _without_opening(text, opening)
    if _is_only_pictures(text):
        raise PairRejected("picture", text[:60])
    text = _outside_code(text, lambda part: _words_before_markdown(part, chinese))
    text = speak_markdown(text, chinese, lambda code: plain.speak_code(code, chinese))
    text = plain.without_signs(plain.without_brackets(text, chinese), chinese)
    text = _capitalised(text)
    said, words = text, length_in_words(text)
    if words > limit * _OVER:
        cut = plain.shortened(text, limit) if shorten and words <= limit * _MOST_TIMES_LONGER else None
        if cut is None:
            raise PairRejected("too long", round(words))
        said = cut
    problem = problem_of(said, limit) or unspeakable(said, "zh" if chinese else "en")
    if problem:
        raise PairRejected("not speakable", problem)
    return said, said != text


def _words_before_markdown(text: str, chinese: bool) -> str:
    """Converts everything in a part without code that Markdown parsing would destroy to words."""
    text = re.sub(r"\$?\\boxed\{\s*\}\$?", "方框" if chinese else "a box", text)
    text = speak_latex(text, chinese)
    text = plain.without_footnotes(strip_html(text))
    plain.check_code(text)
    plain.check_pictures(text)
    text = re.sub(r"\*\*([\d\s+*/=×÷().,^%-]*\d)\*\*", r"\1", text)  # not a multiplication sign
    text = _without_labels(text, chinese)
    options = {m[1] for m in _OPTION.finditer(text)}

    def option(m: re.Match[str]) -> str:
        if m[0].rstrip().endswith(".") and not {"A", "B"} <= options:
            return m[0]  # an initial or an abbreviation: `A. Lincoln`
        return f"\n选项{m[1]}，" if chinese else f"\nOption {m[1]}, "

    text = _OPTION.sub(option, text)
    text = re.sub(r"(?<!!)\[([^\]\n]+)\]\((?:[^()\s]|\([^()\s]*\))+\)", r"\1", text)  # the text of a link
    text = re.sub(r"!\[[^\]\n]*\]\([^)\n]*\)", "", text)
    text = re.sub(r"^([ \t]*[-*+][ \t]+)\[[ xX]\][ \t]+", r"\1", text, flags=re.MULTILINE)  # task lists
    text = re.sub(r"^[ \t]*[•·●▪◦‣][ \t]*", "- ", text, flags=re.MULTILINE)
    marks = len(re.findall(r"^[ \t]*\d+、", text, flags=re.MULTILINE))
    after_mark = r"\S" if marks > 1 else r"[^\s\d]"  # 3、4月 alone means two months
    text = re.sub(
        rf"^([ \t]*)(\d+)(?:[)．][ \t]*(?=\S)|、[ \t]*(?={after_mark}))", r"\1\2. ", text, flags=re.MULTILINE
    )
    text = plain.speak_comparisons_at_line_starts(text, chinese)
    text = plain.speak_addresses(text, chinese)
    return speak_plain_formulas(plain.speak_ranges(text, chinese), chinese)


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """Applies a change outside of fences and inline code."""
    parts = _FENCE.split(text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def _without_math(text: str) -> str:
    """The text without its formulas, whose letters belong to no language."""
    return re.sub(r"\$[^$\n]+\$|\\\(.+?\\\)|\\\[.+?\\\]|`[^`]*`", " ", text, flags=re.DOTALL)


def _without_opening(text: str, opening: re.Pattern[str]) -> str:
    """Removes phrases such as "As an AI language model,"."""
    for _ in range(2):
        text = opening.sub("", text)
    return text


def _is_only_pictures(text: str) -> bool:
    images = re.findall(r"!\[[^\]\n]*\]\([^)\n]*\)|<img\b[^>]*>", text)
    rest = re.sub(r"!\[[^\]\n]*\]\([^)\n]*\)|<img\b[^>]*>", "", text)
    about = re.search(r"\b(image|picture|photo|figure|diagram|chart)\b|图", rest, re.IGNORECASE)
    return bool(images) and (not re.search(r"\w", rest) or about is not None)


def _without_labels(text: str, chinese: bool) -> str:
    """ "**Speed:** it is fast" and lines of "Method: …" as sentences."""
    stop, comma = ("。", "，") if chinese else (". ", ", ")

    def sentence(match: re.Match[str]) -> str:
        after = text[match.end() : match.end() + 1]
        return match.group(2).strip() + (comma if after.isdigit() else stop)

    text = _BOLD_LABEL.sub(sentence, text)
    lines = _LABEL.findall(text)
    if len(lines) < 2:
        return text
    return _LABEL.sub(lambda m: f"\n{m.group(1) or m.group(2)}{stop}", text)


def _capitalised(text: str) -> str:
    """Capitalises the first letter of sentences, except in quotes and names of code."""
    return re.sub(r"^[a-z](?=[a-z]* )", lambda m: m.group().upper(), text)


def _apology(question: str) -> str:
    """The sentence that opens the answer if speech cannot have the requested format; "" if none is needed.

    Raises:
        PairRejected: if the question makes no sense without the format.
    """
    needed = _NEEDS_FORMAT.search(question)
    if needed:
        raise PairRejected("format", needed.group()[:60])
    for pattern, english, chinese in _IMPOSSIBLE:
        if re.search(pattern, question, re.IGNORECASE):
            if is_chinese(question):
                return f"抱歉，我没法用{chinese}展示，不过可以说给你听。"
            return f"Sorry, I can't give you {english} in speech, but I can tell you."
    return ""


def _style(text: str) -> str:
    return next((style for style, pattern in _STYLES if re.search(pattern, text, re.IGNORECASE)), "neutral")


def _quality(said: str, written: str, shorter: bool) -> int:
    """5, reduced for shortened, cut-off, very short or repetitive texts and refusals."""
    quality = 5 - shorter
    if not re.search(r"[.!?。！？…\"'”)）`|*$\]:：>]\s*$|\w\s*$", written) or re.search(
        r"[,，;；]\s*$", written
    ):
        quality -= 1
    if length_in_words(said) < 2:
        quality -= 1
    sentences = [s.strip() for s in re.split(r"[.!?。！？]", said) if len(s.strip()) > 8]
    if len(sentences) != len(set(sentences)):
        quality -= 2
    if _REFUSAL.search(said):
        quality -= 3
    return max(1, quality)
