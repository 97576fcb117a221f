"""`prepare manifest --from hf` takes one column of sound: datasets of spoken questions and answers had no way
to become conversations. The documentation has a script.
"""

import runpy
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from lit_moss.audio import io
from lit_moss.corpora.conversations import read_conversations

pytestmark = pytest.mark.slow


def test_the_script_of_the_documentation_writes_conversations(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    for name in ("asked.wav", "said.flac"):
        soundfile.write(tmp_path / name, np.random.default_rng(0).normal(0, 0.1, 8_000), 16_000)
    asked = {"bytes": (tmp_path / "asked.wav").read_bytes(), "path": None}
    said = {"bytes": None, "path": str(tmp_path / "said.flac")}
    sound = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    text = datasets.Value("string")
    features = {"question_audio": sound, "question": text, "answer_audio": sound, "answer": text}
    rows = {"question_audio": [asked] * 2, "question": ["How late is it?", "几点了？"],
            "answer_audio": [said] * 2, "answer": ["Ten past four.", "四点十分。"]}  # fmt: skip
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    for column in ("question_audio", "answer_audio"):
        dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    dataset.save_to_disk(tmp_path / "saved")

    page = (ROOT / "docs/data.md").read_text()
    script = tmp_path / "conversations.py"
    script.write_text(page.split('```python title="conversations.py"\n')[1].split("```")[0])
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "saved"), str(tmp_path / "out/qa.jsonl")])
    runpy.run_path(str(script), run_name="__main__")

    (_, first), (_, second) = read_conversations(tmp_path / "out/qa.jsonl")
    assert [(m.role, m.text) for m in first] == [("user", "How late is it?"), ("assistant", "Ten past four.")]
    assert [m.text for m in second] == ["几点了？", "四点十分。"]
    recordings = [m.recording for m in (*first, *second)]
    assert [io.info(r.audio).frames for r in recordings if r] == [8_000] * 4
    assert (tmp_path / "out/qa_audio/0000000-user.wav").read_bytes() == asked["bytes"]
