"""Runs of a study at the same time, each after the one it starts from."""

import queue
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def run_all(runs: Mapping[Key, Callable[[], Value]], after: Mapping[Key, Key], jobs: int) -> dict[Key, Value]:
    """Results of all runs; the first error is raised once those that had begun have ended.

    Ctrl-C does not wait: the runs' processes notice that this one is gone, write their states and end.

    Args:
        runs: Name -> the run, each after the one it starts from.
        after: Name -> the run that must have ended before.
        jobs: Runs at a time.
    """
    waiting, running, results, errors = [*runs], set[Key](), dict[Key, Value](), list[BaseException]()
    ended: queue.Queue[Key] = queue.Queue()

    def work(key: Key) -> None:
        try:
            value = runs[key]()
        except BaseException as error:
            errors.append(error)
        else:
            results[key] = value
        ended.put(key)

    while running or (waiting and not errors):
        ready = [key for key in waiting if key not in after or after[key] in results]
        for key in [] if errors else ready[: jobs - len(running)]:
            waiting.remove(key)
            running.add(key)
            # A thread that the end of this process does not wait for.
            threading.Thread(target=work, args=(key,), daemon=True).start()
        if not running:
            raise ValueError(f"{waiting} follow runs that are not among these")
        running.remove(ended.get())
    if errors:
        raise errors[0]
    return {key: results[key] for key in runs}
