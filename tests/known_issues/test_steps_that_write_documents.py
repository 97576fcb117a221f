"""The table of a chain had 0 items and 0.000 hours out for `interleave`, `text` and `sft` that went well."""

import json

import numpy as np
import pytest
import soundfile
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.prepare.chain import Chain, run_chain
from lit_moss.prepare.report import steps_table
from lit_moss.prepare.report_data import read_steps

pytestmark = pytest.mark.slow
SECONDS = 72.0  # 0.02 hours


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    wave = np.random.default_rng(0).normal(0, 0.1, round(SECONDS * 16_000))
    soundfile.write(tmp_path / "long.flac", wave, 16_000)
    codec, backbone = made_up_codec(tmp_path / "codec"), backbone_folder(tmp_path / "backbone")
    return {"speech_tokenizer": str(codec), "backbone": str(backbone)}


@pytest.fixture
def rows(tmp_path, capsys):
    """Rows of the printed table, of `statistics.md` and of the report, by step."""

    def run(item, **steps):
        (tmp_path / "items.jsonl").write_text(json.dumps(item) + "\n")
        out = tmp_path / "out"
        run_chain(Chain(out=str(out), steps=steps, sources=[str(tmp_path / "items.jsonl")], track=False))
        report = steps_table(read_steps([str(out / name / "manifest.jsonl") for name in steps]))
        tables = [capsys.readouterr().out, (out / "statistics.md").read_text(), report]
        cells = [[[c.strip() for c in line.split("|")[1:-1]] for line in t.splitlines()] for t in tables]
        found = [{row[0]: row[1:] for row in table if row and row[0] in steps} for table in cells]
        # The report has the name of the stage beside that of the step.
        return [found[0], found[1], {name: row[1:] for name, row in found[2].items()}]

    return run


def test_sft_has_documents_and_hours(rows, models):
    messages = [{"role": r, "content": "Yes.", "audio_filepath": "long.flac"} for r in ("user", "assistant")]
    for table in rows({"id": "c", "messages": messages}, sft=models):
        # Speech in speech-speech (two turns), speech-text and text-speech.
        assert table["sft"][:5] == ["1", "4 documents", "0", "0.000", "0.080"]


def test_interleave_and_text_have_documents(rows, models):
    item = {"audio_filepath": "long.flac", "duration": SECONDS, "text": "Yes.", "lang": "en"}
    interleave = {"unsupervised": "all", "speech_share": 1.0, **models}
    for table in rows(item, interleave=interleave, text={"input": "sources", **models}):
        assert table["interleave"][:5] == ["1", "2 documents", "0", "0.020", "0.040"]
        assert table["text"][:5] == ["1", "1 document", "0", "0.020", "0.000"]
