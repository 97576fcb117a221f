"""The six rules of `lit_moss.data.transcripts`."""

import random
import re
import sys

import pytest

from lit_moss.data.transcripts import normalise

CASES = [
    # 1. NFKC
    ("ＨＥＬＬＯ　ｗｏｒｌｄ", "hello world"),
    ("ﬁne oﬀice", "fine office"),
    ("x² ½ Ⅻ", "x2 1 2 xii"),
    # 2. lower case
    ("HeLLo THERE", "hello there"),
    ("İstanbul", "istanbul"),
    # 3. accents and apostrophes
    ("Café naïve ÅNGSTRÖM señor", "cafe naive angstrom senor"),
    ("cafe\u0301", "cafe"),
    ("don’t don‘t donʼt don´t don`t don't", "don't don't don't don't don't don't"),
    # 4. what is kept
    ("room 101, 7pm", "room 101 7pm"),
    ("the dogs' bones 'quoted' rock 'n' roll o'clock", "the dogs bones quoted rock n roll o'clock"),
    ("a''b '' ' it's'", "a b it's"),
    ("5'4", "5'4"),
    # 5. everything else is a space
    ("one-two…three—four/five", "one two three four five"),
    ("a\tb\n c\u00a0\u2003d\u2028e", "a b c d e"),
    ("€5 & 100%", "5 100"),
    ("hello мир العالم 🙂 bye", "hello bye"),
    ("", ""),
    (" \n ", ""),
    ("?!… — 🙂", ""),
    # 6. Chinese
    ("你好，世界。", "你好世界"),
    ("你 好 world 你好", "你好world你好"),
    ("我有 3 个 apples", "我有3个apples"),
    ("㐀 豈 𠀀", "㐀豈𠀀"),
    ("中'文'", "中文"),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_rule(text, expected):
    assert normalise(text) == expected


def random_text(rng):
    ranges = [(32, 127), (0xA0, 0x250), (0x2000, 0x2070), (0x300, 0x370), (0x4E00, 0x4E40), (0xF900, 0xFB10),
              (0xFF00, 0xFFF0), (0, sys.maxunicode + 1)]  # fmt: skip
    points = [rng.randrange(*rng.choice(ranges)) for _ in range(rng.randrange(40))]
    return "".join(rng.choice([chr(p), "'", " ", "a"]) for p in points if not 0xD800 <= p < 0xE000)


def test_normalised_text_is_clean_and_normalising_it_again_changes_nothing():
    rng = random.Random(0)
    han = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    for _ in range(5000):
        text = random_text(rng)
        once = normalise(text)
        assert normalise(once) == once, repr(text)
        assert re.fullmatch(f"[a-z0-9' {han}]*", once), repr(text)
        assert not re.search(f"^ | $|  |[{han}] | [{han}]", once), repr(text)
        assert not re.search(r"(?<![a-z0-9])'|'(?![a-z0-9])", once), repr(text)
