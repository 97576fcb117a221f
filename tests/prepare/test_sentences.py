"""Cutting text for a voice."""

import random

import pytest

from lit_moss.errors import UserError
from lit_moss.prepare.language import han_share, text_language
from lit_moss.prepare.sentences import split_text

ENGLISH = [
    ("He went home. She stayed here.", ["He went home.", "She stayed here."]),
    ("Mr. Smith met Dr. Jones. They talked.", ["Mr. Smith met Dr. Jones.", "They talked."]),
    ("It is 3.14 or so. Is it? Yes!", ["It is 3.14 or so.", "Is it?", "Yes!"]),
    ("Use e.g. this one. Or that.", ["Use e.g. this one.", "Or that."]),
    ("The U.S. is big. J. F. Kennedy said so.", ["The U.S. is big.", "J. F. Kennedy said so."]),
    ('"Go now!" he said. "Why?" she asked.', ['"Go now!" he said.', '"Why?" she asked.']),
    ("See No. 5 first. Then Fig. 3.", ["See No. 5 first.", "Then Fig. 3."]),
    ("Call at 5 p.m. Then leave.", ["Call at 5 p.m.", "Then leave."]),
    ("Apples, pears, etc. are fruit. Yes.", ["Apples, pears, etc. are fruit.", "Yes."]),
    ("1. Wash it. 2. Dry it.", ["1. Wash it.", "2. Dry it."]),
    ("Wait... what? No…", ["Wait... what?", "No…"]),
    ("A line\nAnother line", ["A line", "Another line"]),
    ("It was in 1905. Then it ended.", ["It was in 1905.", "Then it ended."]),
    ("So did I. And you?", ["So did I.", "And you?"]),
    ("See example.com for more. Done.", ["See example.com for more.", "Done."]),
]


@pytest.mark.parametrize(("text", "expected"), ENGLISH)
def test_english_sentences(text, expected):
    assert split_text(text, "en", min_words=0) == expected


def test_chinese_sentences():
    text = "今天天气很好，我们去吧。好的！“走吗？”他问；我说3.5公里。"
    assert split_text(text, "zh", min_words=0) == [
        "今天天气很好，我们去吧。", "好的！", "“走吗？”", "他问；", "我说3.5公里。"
    ]  # fmt: skip


def test_long_sentences_are_cut_at_commas_then_at_spaces():
    text = "one two three, four five six, seven eight nine ten eleven."
    assert split_text(text, "en", max_chars=30, min_words=0) == [
        "one two three, four five six,", "seven eight nine ten eleven."
    ]  # fmt: skip
    assert split_text("aaa bbb ccc ddd", "en", max_chars=7, min_words=0) == ["aaa bbb", "ccc ddd"]
    assert split_text("一二三四五，六七八九十，一二三", "zh", max_chars=8, min_words=0) == [
        "一二三四五，", "六七八九十，", "一二三"
    ]  # fmt: skip


def test_short_pieces_are_joined_where_there_is_room():
    text = "Yes. I will come along tomorrow morning. Fine."
    assert split_text(text, "en") == [text]
    assert split_text(text, "en", max_chars=41) == ["Yes. I will come along tomorrow morning.", "Fine."]


def test_every_character_is_in_exactly_one_piece_and_none_is_too_long():
    draw = random.Random(3)
    for lang, characters in (("en", "ab. ,!?\"') 5\n—"), ("zh", "我好。，！？”》 a5.—")):
        for _ in range(300):
            text = "".join(draw.choices(characters, k=draw.randint(0, 80)))
            limit = draw.randint(1, 40)
            pieces = split_text(text, lang, limit, draw.randint(0, 6))
            assert "".join("".join(pieces).split()) == "".join(text.split())
            assert all(p == p.strip() and 0 < len(p) <= limit for p in pieces)


def test_limit_below_one_is_refused():
    with pytest.raises(UserError, match="expected at least 1"):
        split_text("text", "en", max_chars=0)


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("hello there", "en"),
        ("你好", "zh"),
        ("我用 iPhone 拍照", "zh"),
        ("The word 你好 means hello in Chinese", "en"),
        ("", "en"),
    ],
)
def test_language_by_script(text, lang):
    assert text_language(text) == lang
    assert 0 <= han_share(text) <= 1
