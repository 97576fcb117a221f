"""The shipped chains, killed in each of their stages: the same call goes on, nothing differs in the end."""

import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import chains

# Units after which the process dies; stages that need all items die in the middle.
KILLS = {
    "speech": dict.fromkeys(("vad", "transcribe", "check-transcripts", "align", "chunk"), 2)
    | {"tokenize": 1, "interleave": 0, "report": 0},
    "synthetic": {"dedup": 0, "synthesize": 2, "filter": 1, "text": 0},
    "sft": {"adapt": 2, "speak": 2, "sft": 0},
    "self-answer": {"self-answer": 1},
}


@pytest.fixture(scope="module")
def words(corpus, tmp_path_factory) -> dict[str, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("sources")
    chains.recordings(corpus, folder / "recordings")
    return {
        "speech": (*chains.SPEECH, str(folder / "recordings")),
        "synthetic": (*chains.SYNTHETIC, str(chains.texts(folder))),
        "sft": (*chains.SFT, str(chains.pairs(folder))),
        "self-answer": (*chains.SELF_ANSWER, str(chains.pairs(folder))),
    }


@pytest.mark.nightly
@pytest.mark.parametrize("name", list(KILLS))
def test_a_chain_that_is_killed_in_each_stage_writes_the_same(name, words, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = chains.prepare(whole, chains.own_cache(tmp_path / "cache"), *words[name], "--out", "out")
    assert done.returncode == 0, done.stderr[-3000:]
    expected = chains.contents(whole / "out")

    killed.mkdir()
    for calls in whole.glob("*.calls"):
        shutil.copy(calls, killed)
    cache = chains.own_cache(tmp_path / "other_cache")
    for number in range(len(KILLS[name]) + 1):
        done = chains.prepare(killed, cache, *words[name], "--out", "out", kill=KILLS[name])
        assert len(list(killed.glob("*.killed"))) == min(number + 1, len(KILLS[name]))
        if number < len(KILLS[name]):
            assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
    found = chains.contents(killed / "out")
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
