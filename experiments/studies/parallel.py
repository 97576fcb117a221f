"""Runs the runs of a study concurrently, each after the one it starts from."""

import queue
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def run_all(runs: Mapping[Key, Callable[[], Value]], after: Mapping[Key, Key], jobs: int) -> dict[Key, Value]:
    """Returns the results of all runs; raises the first error after all runs in progress have ended.

    Ctrl-C does not wait: the processes of the runs notice that this process has ended, save their state and
    end.

    Args:
        runs: Name -> function that runs it.
        after: Name -> name of the run that must have ended before.
        jobs: Maximum number of concurrent runs.
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
            # A daemon thread, since the end of this process does not wait for it.
            threading.Thread(target=work, args=(key,), daemon=True).start()
        if not running:
            raise ValueError(f"{waiting} follow runs that are not among these")
        running.remove(ended.get())
    if errors:
        raise errors[0]
    return {key: results[key] for key in runs}
