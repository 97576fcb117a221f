"""`prepare documents` named each missing recording in one message of 143 KB, gave two totals for them, and
told to change `max_bad_share`, which it had no option for.
"""

import json

import numpy as np
import pytest
import soundfile
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture
def documents(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    soundfile.write(tmp_path / "here.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    lines = []
    for number in range(20):
        names = ("here.wav", "here.wav") if number < 5 else (f"user{number}.wav", f"reply{number}.wav")
        roles = zip(("user", "assistant"), names, strict=True)
        lines.append({"messages": [{"role": r, "content": "Well.", "audio_filepath": n} for r, n in roles]})
    source = tmp_path / "sft.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    parts = ["--speech-tokenizer", str(made_up_codec(tmp_path / "codec"))]
    parts += ["--backbone", str(backbone_folder(tmp_path / "backbone")), "--kind", "sft"]

    def run(*words):
        return main(["prepare", "documents", str(source), *parts, "--out", str(tmp_path / "docs"), *words])

    return run


def test_the_message_is_short_and_has_one_total(documents, capsys, tmp_path):
    for _ in range(2):  # computed, and from the cache
        assert documents() == 2
        said = capsys.readouterr().err
        assert said.count("no such file") == 5
        assert said.count(" of ") == said.count("30 of 40 recordings cannot be read, more than 1%") == 1
        assert "; and 25 more: repair or remove them, or raise max_bad_share" in said
        assert not (tmp_path / "docs").exists()


def test_the_share_is_an_option(documents, capsys, tmp_path):
    assert documents("--max-bad-share", "0.75", "--pairs", "speech-speech") == 0
    done = capsys.readouterr()
    assert "5 documents" in done.out
    assert "30 of 40 left out: " in done.err
    assert done.err.count("no such file") == 5


def test_a_share_above_one_is_refused(documents, capsys):
    assert documents("--max-bad-share", "75") == 2
    assert "--max-bad-share is 75.0, expected a share from 0 to 1" in capsys.readouterr().err
