"""The bench of aligners: borders, pauses, and the errors between them, in closed form."""

import numpy as np
import pytest
import soundfile

from experiments.benches import align as bench
from lit_moss.prepare.forced_alignment import TimedWord


def word(start_sec: float, end_sec: float) -> TimedWord:
    return TimedWord(start_sec, end_sec, 1.0)


def test_a_border_is_the_middle_of_the_gap():
    assert bench.borders([word(0, 1), word(1.5, 2), None, word(3, 4)]) == [1.25, None, None]


def test_pauses_are_found_to_a_frame(tmp_path):
    rate = bench.RATE_HZ
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * rate)
    noise[rate : rate + rate // 2] = 0.0  # 1.0 to 1.5 s
    soundfile.write(tmp_path / "a.wav", noise, rate)
    assert bench.pauses({"audio_filepath": str(tmp_path / "a.wav")}) == pytest.approx([1.25], abs=0.01)


def test_errors_at_pauses_are_signed_and_far_borders_do_not_count():
    words = [word(0, 1), word(1.2, 2), word(2.2, 3)]
    assert bench.at_pauses(words, [1.0, 5.0]) == pytest.approx([0.1])


def test_a_constant_error_is_shown_apart():
    shown = bench.line("x", [0.05, 0.05, 0.05])
    assert shown == "| x | 3 | +50 | 50 | 0 | 0 |"
    assert bench.line("x", []) == "| x | 0 | | | | |"
