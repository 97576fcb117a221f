"""The questions and answers included in the package, in English and Chinese."""

from pathlib import Path

QUESTIONS = "embedded:questions-en-zh"


def questions_file() -> Path:
    """JSON lines of {id, question, answer, lang, source, licence}.

    120 plain everyday pairs, half of them Chinese, and 102 pairs that are hard to speak: lists, tables,
    formulas, code, addresses.
    """
    return Path(__file__).with_name("questions_en_zh.jsonl")
