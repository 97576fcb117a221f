"""A report stayed as it was when the documents beside an unchanged manifest were made anew; in a store, a
step that was interrupted with other options was taken for finished when the first options came back; and
statistics.md told the times of its last call, which differ after every interruption.
"""

import json
import sys

import pytest
from conftest import ROOT

from lit_moss.prepare.chain import Chain, run_chain
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.step import Machine, Step

sys.path.insert(0, str(ROOT / "tests" / "prepare"))
import counting
from counting import CountingOptions


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps({"id": f"t{i}", "text": "a" * (i + 1)}) + "\n" for i in range(4)))
    return path


def test_a_report_follows_the_rejections_of_its_steps(source, tmp_path):
    def chain(least: int) -> str:
        steps = {"count": {"stage": "counting.CountingStage", "least": least}, "report": {}}
        run_chain(Chain(out=str(tmp_path / "out"), steps=steps, sources=[str(source)], track=False))
        return (tmp_path / "out" / "report" / "report.md").read_text()

    assert "(limit 90)" in chain(90)
    assert "(limit 99)" in chain(99)  # all are rejected again: the same, empty, manifest


def test_the_statistics_of_a_chain_do_not_depend_on_the_clock(source, tmp_path):
    chain = Chain(out=str(tmp_path / "out"), steps={"count": {"stage": "counting.CountingStage"}},
                  sources=[str(source)], track=False)  # fmt: skip
    run_chain(chain)
    first = (tmp_path / "out" / "statistics.md").read_text()
    assert [r.items_run for r in run_chain(chain)] == [0]
    assert (tmp_path / "out" / "statistics.md").read_text() == first
    assert "time" not in first


def test_a_stored_step_that_was_interrupted_is_not_finished(tmp_path, monkeypatch):
    source = tmp_path / "source.jsonl"
    source.write_text('{"id": "a", "text": "a", "letters": 1}\n')
    folder = "memory://stale/out"

    def step(least: int) -> Step:
        return Step(
            "x", "counting.LongestStage", CountingOptions(least=least), (str(source),), folder, folder
        )

    assert run_step(step(1), Machine()).items_run == 1
    with monkeypatch.context() as patched:
        patched.setattr(counting.LongestStage, "run_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_step(step(2), Machine())
    assert run_step(step(1), Machine()).items_run == 1
    assert run_step(step(1), Machine()).items_run == 0


def interrupted(self, sources):
    raise KeyboardInterrupt
