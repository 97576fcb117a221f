"""`evaluate resynthesis` crashed at its end where some clips of a list have a transcript and others do not.

Pooled word errors were also reported without an interval.
"""

from pathlib import Path

from lit_moss.evaluate.clips import Clip
from lit_moss.evaluate.evaluation import FAILED
from lit_moss.evaluate.resynthesis import Config, means, report, rows_of, word_errors


def rows(config):
    spoken = {"one two three four": "one two three four", "five six": "five"}
    found = []
    for n, (text, heard) in enumerate(spoken.items()):
        row = {"clip": str(n), "rung": "codec", "reference": text, "hypothesis": heard, "mcd_db": 2.0 + n}
        found += rows_of(
            Clip(str(n), Path("a.wav"), text), {"rows": [row | word_errors(text, heard, "en")]}, config
        )
    without = {"clip": "2", "rung": "codec", "reference": "", "hypothesis": "", "mcd_db": 4.0}
    found += rows_of(Clip("2", Path("b.wav"), ""), {"rows": [without]}, config)
    return found + rows_of(Clip("3", Path("c.wav"), ""), {FAILED: "no sound"}, config)


def test_they_are_left_out_of_word_errors_alone():
    values = means(rows(Config("c", "l", rungs=["codec"])), ["codec"])["codec"]
    assert values["wer"] == values["wer_seed_pooled"] == 1 / 6
    assert values["wer_seed"] == 0.25
    assert values["mcd_db"] == 3.0


def test_an_unreadable_clip_with_a_transcript_still_counts_as_not_recognised():
    config = Config("c", "l", rungs=["codec"])
    lost = rows_of(Clip("4", Path("d.wav"), "seven eight"), {FAILED: "no sound"}, config)
    assert means(rows(config) + lost, ["codec"])["codec"]["wer"] == 3 / 8


def test_pooled_word_errors_have_an_interval():
    config = Config("c", "l", rungs=["codec"])
    table = report(means(rows(config), ["codec"]), rows(config), config, 4, ["3"])
    assert "| codec | 0.167 (0.000 to 0.500) | 3.000 ± 1.132 |" in table
    assert "| codec | 25.000 ± 49.000 | 16.667 (0.000 to 50.000) |" in table


def test_a_list_without_any_transcript_has_no_word_errors():
    config = Config("c", "l", rungs=["codec"])
    silent = [row for row in rows(config) if not row["reference"]]
    assert means(silent, ["codec"]) == {"codec": {"mcd_db": 4.0}}
    assert "wer" not in report(means(silent, ["codec"]), silent, config, 2, [])
