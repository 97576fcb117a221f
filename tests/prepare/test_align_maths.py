"""Forced alignment and what is made of it: known paths, wildcards, guards, interpolation, romanisation."""

import itertools
import math

import pytest
import torch

from lit_moss.prepare.forced_alignment import WILDCARD, CannotAlign, align_words, interpolate
from lit_moss.prepare.language import is_han
from lit_moss.prepare.romanise import romanise
from lit_moss.prepare.words import split_words

A, B, C, SPACE = 1, 2, 3, 4


def emission(path, probability=0.9, vocabulary=5, seed=0):
    """Log-probabilities in which each frame of a path has about this probability."""
    noise = torch.rand(len(path), vocabulary, generator=torch.Generator().manual_seed(seed)) * 0.01
    noise[torch.arange(len(path)), torch.tensor(path)] += probability * vocabulary
    return (noise / noise.sum(dim=1, keepdim=True)).log()


def test_words_are_where_the_path_has_them():
    path = [0, A, A, 0, B, 0, SPACE, 0, 0, C, C, C, 0]
    first, second = align_words(emission(path), [[A, B], [C]], 0.02, separator=SPACE)
    assert (first.start_sec, first.end_sec) == pytest.approx((0.02, 0.10))
    assert (second.start_sec, second.end_sec) == pytest.approx((0.18, 0.24))
    assert first.score == pytest.approx(second.score, abs=0.01)
    assert (first.weight, second.weight) == (3, 3)


def test_score_is_the_mean_over_frames():
    log_probs = emission([A, A, A, 0, B], 0.9)
    log_probs[4] = torch.tensor([0.2, 0.11, 0.41, 0.15, 0.13]).log()
    (word,) = align_words(log_probs, [[A, B]], 0.02)
    expected = (log_probs[:3, A].exp().sum() + 0.41) / 4
    assert word.score == pytest.approx(float(expected), abs=1e-5)


def test_seconds_are_those_of_the_given_frame_length():
    (word,) = align_words(emission([0, 0, A, 0]), [[A]], 0.0201)
    assert word.start_sec == pytest.approx(2 * 0.0201)


def test_blank_may_be_any_column():
    path = [2, 2, A, 2, 0]
    (word,) = align_words(emission(path), [[A, 0]], 1.0, blank=2)
    assert (word.start_sec, word.end_sec) == (2.0, 5.0)


def test_unknown_letter_takes_the_best_symbol_that_is_no_blank():
    path = [0, A, 0, C, C, 0, B, 0]
    (word,) = align_words(emission(path), [[A, WILDCARD, B]], 1.0)
    assert (word.start_sec, word.end_sec) == (1.0, 7.0)
    assert word.weight == 2  # its own letters alone are scored
    unknown, known = align_words(emission(path), [[WILDCARD], [C, B]], 1.0)
    assert unknown.score is None
    assert unknown.start_sec == 1.0
    assert known.start_sec == 3.0


def best_path(log_probs, ids):
    """Score of the best CTC path, by trying all."""
    best = -math.inf
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        labels = [k for k, _ in itertools.groupby(path) if k]
        if labels == ids:
            best = max(best, sum(float(log_probs[t, k]) for t, k in enumerate(path)))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_path_with_a_wildcard_is_the_best_of_all_paths(seed):
    """The wildcard as a symbol of its own, tried out beside `forced_align`."""
    from torchaudio import functional as F

    from lit_moss.prepare.forced_alignment import _with_wildcard

    log_probs = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)).log_softmax(dim=1)
    wide = _with_wildcard(log_probs, blank=0)
    path, scores = F.forced_align(wide[None], torch.tensor([[1, 3, 2]], dtype=torch.int32), blank=0)
    assert float(scores.sum()) == pytest.approx(best_path(wide, [1, 3, 2]), abs=1e-4), path


def test_text_that_is_too_long_is_refused():
    with pytest.raises(CannotAlign) as refused:
        align_words(emission([A, 0, A]), [[A, A, B]], 0.02)
    assert (refused.value.reason, refused.value.value, refused.value.threshold) == (
        "text too long for its audio", 4, 3
    )  # fmt: skip
    assert align_words(emission([A, 0, A]), [[A, A]], 0.02)


@pytest.mark.parametrize("words", [[], [[]], [[], []]])
def test_nothing_to_align_is_refused(words):
    with pytest.raises(CannotAlign, match="no letters"):
        align_words(emission([0, A, 0]), words, 0.02)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(value):
    log_probs = emission([0, A, 0])
    log_probs[1, 2] = value
    with pytest.raises(CannotAlign, match="not finite"):
        align_words(log_probs, [[A]], 0.02)


def test_word_without_letters_has_no_time():
    first, silent, last = align_words(emission([A, 0, SPACE, 0, B]), [[A], [], [B]], 1.0, separator=SPACE)
    assert silent is None
    assert first.end_sec == 1.0
    assert last.start_sec == 4.0


def test_missing_words_share_the_gap_by_their_letters():
    assert interpolate([(0.0, 1.0), None, None, (4.0, 5.0)], [1, 2, 4, 1], 9.0) == [
        (0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 5.0)
    ]  # fmt: skip
    assert interpolate([None, (1.0, 2.0), None], [3, 1, 3], 5.0) == [(0.0, 1.0), (1.0, 2.0), (2.0, 5.0)]
    assert interpolate([(0.0, 2.0), None, (1.0, 3.0)], [1, 1, 1], 5.0)[1] == (2.0, 2.0)


# --- Chinese ------------------------------------------------------------------------------------------------


def test_numerals_are_read_as_words():
    numerals = list("一二三十百千万两〇")
    assert romanise(numerals) == ["yi", "er", "san", "shi", "bai", "qian", "wan", "liang", "ling"]
    assert romanise(["百分之二十五"]) == ["baifenzhiershiwu"]
    assert not any(c.isdigit() for c in "".join(romanise(list("二零二四年一个人有两千"))))


def test_readings_follow_the_phrase_across_words():
    assert romanise(list("重庆银行行长")) == ["chong", "qing", "yin", "hang", "hang", "zhang"]
    assert romanise(["行", "ok", "长"]) == ["xing", "ok", "zhang"]


def test_v_is_written_u_and_other_letters_stay():
    assert romanise(["女", "绿", "very", "女very"]) == ["nu", "lu", "very", "nuvery"]


def test_each_character_has_one_syllable_even_if_unknown():
    rare = list("一々々人")
    assert len(romanise(rare)) == 4
    assert romanise(rare)[3] == "ren"
    assert all(map(is_han, rare))
    assert not is_han("か")
    assert not is_han("a")


def test_words_are_cut_at_punctuation_and_at_chinese_characters():
    assert split_words("(well-known), didn\u2019t 'so'") == ["well", "known", "didn't", "so"]
    assert split_words("你好，AI很好！") == ["你", "好", "AI", "很", "好"]
    assert split_words("— …🎉_") == []
