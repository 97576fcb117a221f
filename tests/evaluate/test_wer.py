"""Word error rates: every rule of Seed-TTS-Eval's script and of the normalised mode, by hand."""

import pytest

from lit_moss.evaluate import wer
from lit_moss.evaluate.wer import Errors

EN, ZH = "en", "zh"


def counts(reference: str, hypothesis: str, language: str = EN, mode: wer.Mode = "seed") -> tuple[int, int]:
    found = wer.errors(reference, hypothesis, language, mode)
    return found.errors, found.words


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language", "errors_and_words"),
    [
        ("Close the window.", "close the window", EN, (0, 3)),
        ("It made fifty turns a day.", "It made 50 turns a day.", EN, (1, 6)),  # no normalisation of numbers
        ("don't", "dont", EN, (1, 1)),  # ' is kept
        ("don’t", "dont", EN, (0, 1)),  # ’ is deleted
        ("a well-known man", "a wellknown man", EN, (0, 3)),  # hyphens go, not to a space
        ("a well-known man", "a well known man", EN, (2, 3)),
        ("a - b", "a b", EN, (0, 2)),  # two spaces become one
        ("a — — b", "a b", EN, (0, 2)),
        ("colour", "color", EN, (1, 1)),
        ("one", "no one at all", EN, (3, 1)),  # more errors than words
        ("", "a b", EN, (2, 0)),
        ("今天，天气好。", "今天天气好", ZH, (0, 5)),
        ("今天 天气好", "今天天气好", ZH, (0, 5)),
        ("软件", "軟件", ZH, (0, 2)),  # the transcript is simplified
        ("軟件", "软件", ZH, (1, 2)),  # the text is not
        ("二零二四年", "2024年", ZH, (4, 5)),
        ("AI 好", "ai 好", ZH, (2, 3)),  # Latin letters as they are
    ],
)
def test_rules_of_seed_tts_eval(reference, hypothesis, language, errors_and_words):
    assert counts(reference, hypothesis, language) == errors_and_words


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language", "errors_and_words"),
    [
        ("It made fifty turns a day.", "It made 50 turns a day.", EN, (0, 6)),
        ("twenty-one dollars", "$21", EN, (0, 1)),
        ("Dr. Grey's colour", "doctor grey's color", EN, (0, 4)),  # 's becomes a word of its own
        ("World War II", "world war two", EN, (1, 3)),
        ("O'Neil", "oneil", EN, (2, 2)),  # the normaliser's own fault: 0 neil
        ("二零二四年", "2024年", ZH, (0, 5)),
        ("二十五点五", "２５．５", ZH, (0, 5)),  # full width
        ("軟件，AI！", "软件ai", ZH, (0, 4)),
        ("你好", "你 好 吗", ZH, (1, 2)),
        ("二〇二四年", "二零二四年", ZH, (0, 5)),
    ],
)
def test_rules_of_the_normalised_mode(reference, hypothesis, language, errors_and_words):
    if language == EN:
        pytest.importorskip("whisper_normalizer", reason="needs the extra `evaluate`")
    assert counts(reference, hypothesis, language, "normalised") == errors_and_words


def test_a_clip_above_one_counts_in_full_and_means_differ_from_pools():
    clips = [Errors(3, 1), Errors(0, 7)]
    assert wer.mean_rate(clips) == 1.5
    assert wer.pooled_rate(clips) == 3 / 8
    assert Errors(2, 0).rate == 2  # as jiwer: a count
    assert Errors(0, 0).rate == 0


def test_punctuation_is_that_of_zhon():
    zhon = pytest.importorskip("zhon.hanzi", reason="compares with the package where it is installed")
    import string

    kept = {chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and not wer._seed_words(chr(c), EN)}
    kept = {c for c in kept if not c.isspace()}
    assert kept == {c for c in zhon.punctuation + string.punctuation if not c.isspace()} - {"'"}
