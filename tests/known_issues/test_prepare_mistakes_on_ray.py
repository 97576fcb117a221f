"""On Ray a user's mistake that a stage finds ended in a traceback of Ray's instead of in one line."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "prepare"))
import chains


@pytest.mark.nightly
def test_a_mistake_is_one_line_on_ray(tmp_path):
    pytest.importorskip("ray")
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"id": f"t{i}", "text": "no sound"}) + "\n" for i in range(4)))
    cache = chains.own_cache(tmp_path / "cache")
    words = ("tokenize", str(source), "--out", "out", *chains.SMALL, "--workers", "2", "--engine", "ray")
    done = chains.prepare(tmp_path, cache, *words)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "neither audio_filepath nor messages, expected recordings" in done.stderr.splitlines()[-1]
