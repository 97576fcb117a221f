"""Converts Markdown to sentences: headings, lists with "first, second", rows of small tables, text of links.

Parsed with `markdown-it-py` (CommonMark and tables). Large tables, code and pictures are rejected.
"""

import html
import re
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from typing import TYPE_CHECKING

from lit_moss.errors import UserError
from lit_moss.prepare.adapt_pair import HAN_CHARACTER, PairRejected

if TYPE_CHECKING:
    from markdown_it.tree import SyntaxTreeNode

_MOST_CELLS, _MOST_COLUMNS = 24, 4
_ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth", "Tenth")
_MOST_STEPS = 20  # a list that begins with a higher number is not treated as a list
_SHORT_ITEM_WORDS, _SHORT_ITEM_HAN = 4, 10
_END = re.compile(r"[.!?。！？…:：;；,，]['\"”’]?$")
# First words of items that are not names: written in lower case after "First,".
_SMALL = frozenset(
    str.split(
        "a an the this that these those it its you your we our they their he she there if when while after "
        "before "
        "once then always never try use add apply ask avoid bake be begin boil book bring build buy call "
        "check "
        "choose clean close combine consider cook cool cover create cut do don't drink drop eat "
        "fill find fold get "
        "give go heat hold install keep knead learn leave let listen look make measure melt mix "
        "move open pay place "
        "plan pour practice practise prepare press put read relax remove rest rinse roll run save "
        "serve set sleep "
        "slice sort stand start stay stir stop take talk taste tell test think turn visit wait "
        "walk wash watch wear "
        "work write in on at for with from to by as some most many each every all both and or not no"
    )
)
_PAIRED_TAGS = (
    "b|i|em|strong|u|s|del|ins|span|p|div|font|small|big|mark|a|center|q|cite|h[1-6]|ul|ol|li|blockquote"
)
_REFUSED_TAGS = re.compile(
    r"<\s*(script|style|table|svg|iframe|html|head|body|form|input|button)\b[^>]*>", re.I
)
Code = Callable[[str], str]


def strip_html(text: str) -> str:
    """Removes formatting tags; single tags that the text is about ("the <div> tag") become words.

    Raises:
        PairRejected: if the text contains elements other than formatting.
    """
    if "<" not in text and "&" not in text:
        return text
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<br\s*/?>|</(p|div|li|h[1-6])>", "\n", text, flags=re.I)
    text = re.sub(r"<li[^>]*>", "\n- ", text, flags=re.I)
    text = re.sub(r"<sup>\s*(.*?)\s*</sup>", r"^\1", text, flags=re.I)
    text = re.sub(r"<sub>\s*(.*?)\s*</sub>", r"\1", text, flags=re.I)
    text = re.sub(r"<(https?://[^>\s]+|[^>\s@]+@[^>\s]+)>", r" \1 ", text)  # links in Markdown
    text = re.sub(rf"<({_PAIRED_TAGS})(\s[^>]*)?>(.*?)</\1>", r"\3", text, flags=re.I | re.DOTALL)
    text = re.sub(r"<(?:p|li|ul|ol)(?:\s[^>]*)?>|</(?:p|li|ul|ol)>", "", text, flags=re.I)
    match = _REFUSED_TAGS.search(text)
    if match and re.search(rf"</{match.group(1)}>", text, re.I):
        raise PairRejected("HTML", match.group()[:40])
    return html.unescape(re.sub(r"</?([A-Za-z][A-Za-z0-9]*)\s*/?>", r"\1", text))


def speak_markdown(text: str, chinese: bool, code: Code) -> str:
    """Converts a text to sentences on one line.

    Args:
        text: Markdown; formulas and HTML must have been converted before.
        chinese: Whether added words are Chinese.
        code: Converts short code to words; raises PairRejected for other code.

    Raises:
        PairRejected: if the text contains something that cannot be spoken.
        UserError: if `markdown-it-py` is not installed.
    """
    try:
        from markdown_it import MarkdownIt
        from markdown_it.tree import SyntaxTreeNode
    except ImportError as error:
        raise UserError("adapting needs markdown-it-py: pip install 'lit-moss[prepare]'") from error
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("code")
    tree = SyntaxTreeNode(parser.parse(text))
    small = frozenset(re.findall(r"\b[a-z']+\b", text)) | _SMALL
    return _Speaker(chinese, code, small).blocks(tree.children)


class _Speaker:
    """Traverses the syntax tree of a text."""

    def __init__(self, chinese: bool, code: Code, small: frozenset[str]) -> None:
        self.chinese, self.code, self.small = chinese, code, small
        self.comma, self.stop, self.space = ("，", "。", "") if chinese else (", ", ".", " ")

    def blocks(self, nodes: Sequence["SyntaxTreeNode"]) -> str:
        """Blocks as sentences, in order."""
        said: list[str] = []
        counted = _counted_on(nodes)
        for position, node in enumerate(nodes):
            if node.type == "heading" and _repeated(node, nodes[position + 1 :]):
                continue
            short = _short_list(node)
            if node.type in ("bullet_list", "ordered_list"):
                text = self.list(node, counted_on=position in counted)
                if said and not short:
                    said[-1] = re.sub(r"[:：]$", self.stop, said[-1])
            elif node.type == "table":
                text = self.table(node)
            elif node.type == "fence":
                text = self.fence(node)
            elif node.type == "blockquote":
                text = self.blocks(node.children)
            elif node.type == "hr":
                continue
            else:  # paragraphs and headings; a paragraph before a list may end with a colon
                text = self.finished(self.inline(node.children[0].children if node.children else []))
            if text:
                said.append(text)
        return self.joined(said)

    def joined(self, sentences: Sequence[str]) -> str:
        """Joins sentences; a colon followed by nothing becomes a full stop."""
        text = ""
        for sentence in sentences:
            apart = "" if not text or HAN_CHARACTER.match(sentence[0]) or text[-1] in "。！？：，" else " "
            text += apart + sentence
        return re.sub(r"\s*[:：]$", self.stop, text)

    def finished(self, text: str) -> str:
        """Completes a sentence with a final punctuation mark."""
        text = text.strip()
        return text if not text or _END.search(text) else text + self.stop

    def inline(self, nodes: Sequence["SyntaxTreeNode"]) -> str:
        """Text of inline nodes."""
        said = ""
        for position, node in enumerate(nodes):
            if node.type == "text":
                said += self.lowered(node.content) if said.endswith(self.comma) else node.content
            elif node.type == "code_inline":
                code = self.code(node.content)
                starts = not said or said.endswith((". ", "! ", "? "))
                said += code[:1].upper() + code[1:] if starts else code
            elif node.type in ("softbreak", "hardbreak"):
                after = _plain(nodes[position + 1 :])
                said = said.rstrip() + self.line_break(said.rstrip(), after, hard=node.type == "hardbreak")
            elif node.type == "image":
                continue
            elif node.type == "s":
                continue  # strikethrough
            else:  # strong, em, link
                inside = self.inline(node.children)
                said += inside
        return said

    def line_break(self, before: str, after: str, hard: bool) -> str:
        """The spoken form of a line break: nothing if a text was wrapped, otherwise a pause."""
        if not before or not after:
            return ""
        if _END.search(before):
            return "" if self.chinese else " "
        last_line = before.rsplit("\n", 1)[-1]
        wrapped = not hard and (after[:1].islower() or (len(last_line) >= 60 and not self.chinese))
        return self.space if wrapped else self.comma

    def list(self, node: "SyntaxTreeNode", counted_on: bool = False) -> str:
        """A list as one sentence of short items, or as sentences with ordinals.

        Args:
            node: The list.
            counted_on: Whether its numbers continue in other lists, so that a single item has an ordinal.
        """
        items = [self.item(item) for item in node.children]
        if node.type == "ordered_list" and not counted_on and _begins_with_figures(node):
            return self.with_figures(node, items)
        items = [item for item in items if item]
        if node.type == "bullet_list" and _short_list(node):
            said = self.enumeration([item.rstrip(".。;；,，") for item in items])
            return said + self.stop
        if len(items) < 2 and not counted_on:
            return "".join(items)
        start = int(node.attrs.get("start", 1)) if node.type == "ordered_list" else 1
        numbered = [
            self.ordinal(n) + self.lowered(item) for n, item in zip(count(start), items, strict=False)
        ]
        return self.joined(numbered)

    def item(self, node: "SyntaxTreeNode") -> str:
        """One item: its text, and nested content."""
        children = list(node.children)
        said: list[str] = []
        for position, child in enumerate(children):
            if child.type in ("bullet_list", "ordered_list"):
                text = self.nested(child)
                if position and said and _short_list(child) and not said[-1].endswith(("!", "?", "！", "？")):
                    said[-1] = said[-1].rstrip(".。:：") + ("：" if self.chinese else ": ") + text
                    continue
                said.append(text)
            else:
                said.append(self.blocks([child]))
        return self.joined([s for s in said if s])

    def nested(self, node: "SyntaxTreeNode") -> str:
        """A nested list: without ordinals, which would be confused with those around it."""
        if node.type == "ordered_list" and _begins_with_figures(node):
            return self.with_figures(node, [self.item(item) for item in node.children])
        items = [item for item in map(self.item, node.children) if item]
        if _short_list(node):
            return self.enumeration([item.rstrip(".。;；,，") for item in items]) + self.stop
        return self.joined(items)

    def with_figures(self, node: "SyntaxTreeNode", items: Sequence[str]) -> str:
        """Sentences that begin with a number, including the number."""
        numbers = _numbers(node)
        return self.joined(
            [f"{n}{self.stop}{self.space}{item}".strip() for n, item in zip(numbers, items, strict=True)]
        )

    def enumeration(self, items: Sequence[str]) -> str:
        """ "a, b and c"."""
        if len(items) < 2:
            return "".join(items)
        if self.chinese:
            return "、".join(items[:-1]) + "和" + items[-1]
        return ", ".join(items[:-1]) + " and " + items[-1]

    def ordinal(self, number: int) -> str:
        if self.chinese:
            numerals = "一二三四五六七八九十"
            return f"第{numerals[number - 1] if 1 <= number <= 10 else number}，"
        return f"{_ORDINALS[number - 1]}, " if 1 <= number <= 10 else f"Number {number}, "

    def lowered(self, item: str) -> str:
        first = re.match(r"[A-Za-z']+", item)
        return item[:1].lower() + item[1:] if first and first.group().lower() in self.small else item

    def table(self, node: "SyntaxTreeNode") -> str:
        """Rows of a small table: "Ann, age 30, city Rome."."""
        rows = [
            [self.inline(cell.children[0].children if cell.children else []).strip() for cell in row.children]
            for part in node.children
            for row in part.children
        ]
        head, body = rows[0], rows[1:]
        if len(head) > _MOST_COLUMNS or len(body) * len(head) > _MOST_CELLS or not body:
            raise PairRejected("large table", len(body) * len(head))
        apart = "" if self.chinese else " "
        said = []
        for row in body:
            cells = [
                row[0],
                *(f"{_decapitalised(h)}{apart}{c}" for h, c in zip(head[1:], row[1:], strict=True) if c),
            ]
            said.append(self.finished(self.comma.join(cell for cell in cells if cell)))
        return self.joined(said)

    def fence(self, node: "SyntaxTreeNode") -> str:
        """A block of plain text or of short code."""
        content = node.content.strip()
        if node.info.strip().lower() in ("", "text", "plaintext", "txt", "markdown", "md") and _is_prose(
            content
        ):
            return self.finished(self.line_joined(content))
        if "\n" in content:
            raise PairRejected("code", content[:60])
        return self.finished(self.code(content))

    def line_joined(self, text: str) -> str:
        said = ""
        for line in filter(None, map(str.strip, text.split("\n"))):
            said += self.line_break(said, line, hard=False) + line if said else line
        return said


def _plain(nodes: Sequence["SyntaxTreeNode"]) -> str:
    return "".join(
        n.content if not n.children else _plain(n.children) for n in nodes if n.type != "softbreak"
    ).strip()


def _numbers(node: "SyntaxTreeNode") -> list[int]:
    """The numbers of an ordered list as written: Markdown itself counts from the first one."""
    start = int(node.attrs.get("start", 1))
    return [int(item.info or start + place) for place, item in enumerate(node.children)]


def _begins_with_figures(node: "SyntaxTreeNode") -> bool:
    """Whether an apparent list consists of sentences that begin with a number: `1945. The war ended.`

    True for a single item, or for years that are not consecutive. A single `1.` may be a list.
    """
    numbers = _numbers(node)
    if len(numbers) == 1:
        return numbers[0] != 1
    rises = all(b > a for a, b in pairwise(numbers))
    return numbers[0] > _MOST_STEPS and rises and numbers[-1] - numbers[0] >= len(numbers)


def _counted_on(nodes: Sequence["SyntaxTreeNode"]) -> set[int]:
    """Indices of the lists that form one list with other text between its items: 1., text, 2., text."""
    places, after = [], 1
    for place, node in enumerate(nodes):
        if node.type == "ordered_list" and _numbers(node)[0] == after:
            places.append(place)
            after += len(node.children)
    return set(places) if len(places) > 1 else set()


def _repeated(heading: "SyntaxTreeNode", after: Sequence["SyntaxTreeNode"]) -> bool:
    """Whether the text after a heading begins with the same words."""
    if not after or after[0].type != "paragraph" or not heading.children:
        return False
    title = _plain(heading.children[0].children).rstrip(".:：。").lower()
    return _plain(after[0].children[0].children).lower().startswith(title)


def _short_list(node: "SyntaxTreeNode") -> bool:
    """Whether the items of a list are short enough to be said in one sentence."""
    if node.type != "bullet_list" or len(node.children) > 8:
        return False
    for item in node.children:
        if len(item.children) != 1 or item.children[0].type != "paragraph":
            return False
        text = _plain(item.children[0].children[0].children)
        if (
            len(HAN_CHARACTER.findall(text)) > _SHORT_ITEM_HAN
            or len(HAN_CHARACTER.sub("", text).split()) > _SHORT_ITEM_WORDS
        ):
            return False
        if re.search(r"[.!?。！？,，;；:：](?=.)", text):
            return False
    return True


def _is_prose(text: str) -> bool:
    """Whether a block is prose, not code."""
    return bool(text) and not re.search(r"[{}()\[\]=<>|\\/_#$*^~`@]|;\s*$|->|\+{2}|-{2}", text, re.MULTILINE)


def _decapitalised(word: str) -> str:
    return word[:1].lower() + word[1:] if word[1:2].islower() else word
