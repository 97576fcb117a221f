"""`GPT-3.5` was read GPT threezero point five: the name ended before its point. In Chinese a second number
with a point lost it.
"""

import pytest

from lit_moss.prepare.spoken import spoken

ENGLISH = [
    ("GPT-3.5", "GPT three point five"),
    ("PM2.5 rose.", "PM two point five rose."),
    ("Qwen2.5", "Qwen two point five"),
    ("USB3.0", "USB three point zero"),
    ("iOS17.2", "iOS seventeen point two"),
    ("iOS17.2.1.", "iOS seventeen point two point one."),
    ("GPT-3.5-turbo", "GPT three point five turbo"),
    ("Llama-3.1-8B", "Llama three point one eight B"),
    ("Qwen2.5-VL-7.5B", "Qwen two point five VL seven point five B"),
    ("GPT-4. 5 people", "GPT four. five people"),
    ("A380", "A three eighty"),
]
CHINESE = [
    ("GPT-3.5", "GPT三点五"),
    ("PM2.5", "PM二点五"),
    ("iOS17.2.1", "iOS一七点二点一"),
    ("Qwen2.5-7.5B", "Qwen二点五七点五B"),
]


@pytest.mark.parametrize(("written", "said"), ENGLISH)
def test_english(written, said):
    pytest.importorskip("num2words", reason="needs the extra `prepare`")
    assert spoken(written, "en") == said


@pytest.mark.parametrize(("written", "said"), CHINESE)
def test_chinese(written, said):
    pytest.importorskip("wetext", reason="needs the extra `prepare`")
    assert spoken(written, "zh") == said
