"""A step that was killed while it wrote a file left a scratch folder beside it, for ever; killed while it
wrote its first file, its own folder was refused as not made by prepare.
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lit_moss.prepare.engine import run_step
from lit_moss.prepare.step import Machine, Step

sys.path.insert(0, str(ROOT / "tests" / "prepare"))
from counting import CountingOptions

SHARDS = 2


def step(source: Path, folder: Path, stage: str) -> Step:
    options = CountingOptions(least=2)
    return Step("counting", f"counting.{stage}", options, (str(source),), str(folder), str(folder))


def killed_at_write(number: int, whole: Step) -> bool:
    """Whether the process was killed before it renamed its file of that number; False if it wrote fewer."""
    pid = os.fork()
    if pid == 0:
        writes, replace = 0, os.replace

        def replace_or_die(*paths):
            nonlocal writes
            writes += 1
            if writes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = replace_or_die
        try:
            run_step(whole, Machine(shard_items=3))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def names(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b""
        for p in folder.rglob("*")
        if p.name != "timing.json" and not p.name.startswith("timing.json.partial-")
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["CountingStage", "LongestStage"])
def test_a_step_killed_at_any_of_its_writes_ends_like_any_other(stage, tmp_path):
    source = tmp_path / "source.jsonl"
    lines = [{"id": f"t{i}", "text": "abc"[: i % 3 + 1], "letters": i % 3 + 1} for i in range(3 * SHARDS)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_step(step(source, tmp_path / "whole", stage), Machine(shard_items=3))
    expected, number = names(tmp_path / "whole"), 1
    while killed_at_write(number, killed := step(source, tmp_path / f"killed{number}", stage)):
        run_step(killed, Machine(shard_items=3))
        assert names(Path(killed.folder)) == expected, number
        number += 1
    assert number > 4  # marker, manifest, rejections, state
