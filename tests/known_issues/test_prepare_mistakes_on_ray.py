"""On Ray a user's mistake that a stage finds ended in a traceback of Ray's instead of in one line."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "prepare"))
import chains


@pytest.mark.nightly
def test_a_mistake_that_a_stage_finds_is_one_line_on_ray(tmp_path):
    pytest.importorskip("ray")
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"id": f"t{i}", "text": "a text"}) + "\n" for i in range(4)))
    cache = chains.own_cache(tmp_path / "cache")
    ray = ("--workers", "2", "--engine", "ray")
    words = ("refusing_stage.Refusing", str(source), "--out", "out", *chains.SMALL, *ray)
    done = chains.prepare(tmp_path, cache, *words)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "is refused: expected another one" in done.stderr.splitlines()[-1]
