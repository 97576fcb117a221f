"""Runs of a study at the same time, each after the one it starts from."""

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def run_all(runs: Mapping[Key, Callable[[], Value]], after: Mapping[Key, Key], jobs: int) -> dict[Key, Value]:
    """Results of all runs; the first error is raised once those that had begun have ended.

    Args:
        runs: Name -> the run, each after the one it starts from.
        after: Name -> the run that must have ended before.
        jobs: Runs at a time.
    """
    started: dict[Key, Future[Value]] = {}

    def one(key: Key, before: Future[Value] | None) -> Value:
        if before is not None:
            before.result()
        return runs[key]()

    with ThreadPoolExecutor(jobs) as pool:
        for key in runs:  # in this order, so that what a run waits for has begun before it
            started[key] = pool.submit(one, key, started[after[key]] if key in after else None)
        try:
            return {key: future.result() for key, future in started.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that run are waited for
            raise
