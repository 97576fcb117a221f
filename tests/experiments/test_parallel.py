"""Runs of a study at the same time: order, number, errors."""

import threading
import time

import pytest

from experiments.studies.parallel import run_all


def test_each_run_follows_the_one_it_starts_from_and_no_more_run_than_allowed():
    ended, most, running = [], 0, 0
    lock = threading.Lock()

    def run(name):
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
            ended.append(name)
        return name.upper()

    names = ["a", "b", "c", "a2", "c2"]
    found = run_all({n: lambda n=n: run(n) for n in names}, {"a2": "a", "c2": "c"}, jobs=2)
    assert found == {n: n.upper() for n in names}
    assert ended.index("a") < ended.index("a2")
    assert ended.index("c") < ended.index("c2")
    assert most == 2


def test_an_error_ends_what_waits_for_it_and_is_raised_after_those_that_run():
    ended = []

    def fails():
        raise ValueError("no data")

    def slow():
        time.sleep(0.2)
        ended.append("slow")

    runs = {"fails": fails, "slow": slow, "follows": lambda: ended.append("follows")}
    with pytest.raises(ValueError, match="no data"):
        run_all(runs, {"follows": "fails"}, jobs=3)
    assert ended == ["slow"]
