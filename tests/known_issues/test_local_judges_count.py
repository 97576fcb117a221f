"""An evaluation was read as done after the files of its recogniser, speaker encoder or UTMOS had changed."""

import contextlib
import json
from pathlib import Path

import pytest
from database import give_database
from talker import wave

from lit_moss.audio import io
from lit_moss.errors import UserError
from lit_moss.evaluate import modality_gap, paralinguistics, resynthesis, spoken_qa
from lit_moss.evaluate.evaluation import local_parts


def test_what_is_here_counts_alone(tmp_path):
    (tmp_path / "whisper").mkdir()
    here = str(tmp_path / "whisper")
    assert local_parts("embedded:whisper-base", here, None, "large-v3", "") == [here]


CASES = {
    "resynthesis": (
        resynthesis,
        {"codec": "nowhere", "clips": "clips.jsonl", "judge": None, "speaker": "part"},
    ),
    "judge": (resynthesis, {"codec": "nowhere", "clips": "clips.jsonl", "judge": "part"}),
    "files": (
        paralinguistics,
        {"clips": "clips.jsonl", "files": "copies", "rungs": ["files"], "speaker": "part"},
    ),
    "asr": (spoken_qa, {"model": "nowhere", "asr": "part"}),
    "utmos": (spoken_qa, {"model": "nowhere", "utmos": "part"}),
    "gap": (modality_gap, {"model": "nowhere", "asr": "part"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_another_part_is_another_evaluation(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    give_database(tmp_path)
    io.write(tmp_path / "a.wav", wave(0.3, 150, 16_000), 16_000)
    Path("clips.jsonl").write_text(json.dumps({"audio_filepath": "a.wav", "text": "a"}))
    for folder in ("part", "copies"):
        Path(folder).mkdir()
    benchmark, options = CASES[case]

    def folders():
        """Those of all runs, of which none has a model that can be opened."""
        with contextlib.suppress(UserError):
            benchmark.run(benchmark.Config(**options))
        return len(list(Path("runs").glob("*/*-*")))

    Path("part/model.bin").write_bytes(b"one")
    assert [folders(), folders()] == [1, 1]
    Path("part/model.bin").write_bytes(b"another")
    assert folders() == 2
