"""A report below a folder such as `run[2]` listed no documents, as its name was taken for a pattern; and a
manifest that was removed did not come back, though its shards were there.
"""

import json
import sys

import numpy as np
from conftest import ROOT

from lit_moss.data.documents import DocumentWriter
from lit_moss.llm.rows import RowFormat
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.report_data import read_steps
from lit_moss.prepare.step import Machine, Step

sys.path.insert(0, str(ROOT / "tests" / "prepare"))
from counting import CountingOptions


def counted(tmp_path, name: str) -> Step:
    source, out = tmp_path / "source.jsonl", str(tmp_path / name)
    source.write_text('{"id": "a", "text": "four"}\n')
    return Step("x", "counting.CountingStage", CountingOptions(), (str(source),), out, out)


def test_documents_below_brackets_are_found(tmp_path):
    step = counted(tmp_path, "run[2]*")
    run_step(step, Machine())
    form = RowFormat(100, 50, 1, 40, 2, 3, end_id=6)
    meta = {"kind": "text", "text_tokenizer": "a", "speech_tokenizer": "b", "format_fingerprint": "c"}
    with DocumentWriter(tmp_path / "run[2]*" / "text", meta | {"format": form.to_dict()}) as writer:
        writer.add("a", [7, 7, 7], kind="text")
    (read,) = read_steps([f"{step.folder}/manifest.jsonl"])
    assert [(d.name, d.kind) for d in read.documents] == [("x/text", "text")]
    assert np.array_equal(read.documents[0].rows_D, [3])


def test_a_removed_manifest_comes_back(tmp_path):
    step = counted(tmp_path, "out")
    run_step(step, Machine())
    manifest = tmp_path / "out" / "manifest.jsonl"
    before = manifest.read_bytes()
    assert json.loads(before)["letters"] == 4
    manifest.unlink()
    assert run_step(step, Machine()).items_run == 0
    assert manifest.read_bytes() == before
