"""A lhotse cut that holds a part of its supervision got the whole transcript: where the supervision begins
and ends in the cut was never looked at. `cut_into_windows` makes such cuts.
"""

import json

import numpy as np
import pytest
import soundfile

from lit_moss.cli.main import main
from lit_moss.corpora.manifest import read_manifest


@pytest.fixture
def convert(tmp_path):
    """A cut from second 1 on, `duration` long, with a supervision -> the exit code, and the utterances."""
    soundfile.write(tmp_path / "a.wav", np.full(10 * 16_000, 0.1), 16_000)

    def convert(supervision: dict, duration: float = 3.0):
        source = {"type": "file", "channels": [0], "source": str(tmp_path / "a.wav")}
        recording = {"id": "r", "sources": [source], "sampling_rate": 16_000, "num_samples": 160_000}
        cut = {"id": "c", "type": "MonoCut", "start": 1.0, "duration": duration, "channel": 0}
        cut |= {"recording": recording, "supervisions": [{"id": "s", "text": "all of it"} | supervision]}
        (tmp_path / "cuts.jsonl").write_text(json.dumps(cut) + "\n")
        out = tmp_path / "m.jsonl"
        words = ["prepare", "manifest", "--from", "lhotse", str(tmp_path / "cuts.jsonl"), "--out", str(out)]
        code = main([*words, "--force"])
        return code, read_manifest(out) if code == 0 else None

    return convert


@pytest.mark.parametrize(
    ("start", "duration", "span"),
    [
        (-2.0, 5.0, "-2.00 to 3.00"),
        (0.0, 4.0, "0.00 to 4.00"),
        (-1.0, 6.0, "-1.00 to 5.00"),
        (2.5, 1.0, "2.50 to 3.50"),
    ],
)
def test_a_part_of_a_supervision_is_refused(convert, capsys, start, duration, span):
    assert convert({"start": start, "duration": duration}) == (2, None)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"cuts.jsonl, line 1: got ValueError: a supervision from {span} s in a cut of 3.00 s" in line
    assert "trim_to_supervisions()" in line


@pytest.mark.parametrize(
    "supervision",
    [{"start": 0.0, "duration": 3.0}, {"start": -0.05, "duration": 3.1}, {"start": 0.5, "duration": 2.0}, {},
     {"start": None, "duration": None}],
)  # fmt: skip
def test_whole_supervisions_keep_the_times_of_their_cut(convert, supervision):
    code, utterances = convert(supervision)
    assert code == 0
    assert [(u.offset_sec, u.duration_sec, u.text) for u in utterances] == [(1.0, 3.0, "all of it")]


@pytest.mark.parametrize("wrong", [{"start": "soon"}, {"start": float("nan")}, {"duration": -1}])
def test_times_of_other_types_are_named(convert, capsys, wrong):
    assert convert({"start": 0.0, "duration": 1.0} | wrong) == (2, None)
    key = next(iter(wrong))
    assert f"cuts.jsonl, line 1: supervisions[0].{key} is" in capsys.readouterr().err
