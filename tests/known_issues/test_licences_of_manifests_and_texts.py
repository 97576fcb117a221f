"""`source_name` and `licence` of a chain did nothing for manifests (JSON lines), and `source_name` nothing
for texts, whose source was always the name of their file: the report said "not stated".
"""

import json
import sys

import pytest
from conftest import ROOT

from lit_moss.prepare.chain import Chain, run_chain

sys.path.insert(0, str(ROOT / "tests" / "prepare"))

pytest.importorskip("datasketch")
STATED = {"source_name": "tales", "licence": "CC0-1.0"}


def items(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(tmp_path, steps: dict, source, **stated: str) -> list[list[dict]]:
    out = tmp_path / "out"
    run_chain(Chain(out=str(out), steps=steps, sources=[str(source)], track=False, **stated))
    return [items(out / step / "manifest.jsonl") for step in steps]


COUNTS = {"stage": "counting.CountingStage"}


def test_items_of_a_manifest_get_what_they_lack(tmp_path):
    source = tmp_path / "in" / "a.jsonl"
    source.parent.mkdir()
    lines = [
        {"id": "a", "text": "four", "audio_filepath": "a.wav"},
        {"id": "b", "text": "five", "source": "own"},
    ]
    source.write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    first, second = run(tmp_path, {"count": COUNTS, "again": COUNTS}, source, **STATED)
    for made in (first, second):
        assert [(i["source"], i["licence"]) for i in made] == [("tales", "CC0-1.0"), ("own", "CC0-1.0")]
    assert first[0]["audio_filepath"] == str(source.parent / "a.wav")
    assert not (tmp_path / "out" / "again" / "input-0.jsonl").exists()  # a step's manifest is read as it is


def test_a_manifest_that_states_all_is_read_as_it_is(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"id": "a", "text": "four", "source": "own", "licence": "MIT"}) + "\n")
    ((item,),) = run(tmp_path, {"count": COUNTS}, source, **STATED)
    assert (item["source"], item["licence"]) == ("own", "MIT")
    assert not (tmp_path / "out" / "count" / "input-0.jsonl").exists()


@pytest.mark.parametrize(("stated", "source"), [(STATED, "tales"), ({}, "a.txt")])
def test_a_stated_source_goes_before_the_name_of_the_file(tmp_path, stated, source):
    path = tmp_path / "a.txt"
    path.write_text("The train is late today.\n\nWe wait for it.\n")
    (made,) = run(tmp_path, {"dedup": {}}, path, **stated)
    assert [i["source"] for i in made] == [source] * 2
