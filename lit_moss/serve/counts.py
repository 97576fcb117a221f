"""Statistics of an engine, for `/metrics`."""

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from lit_moss.serve.replies import Reason, Usage

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


class Histogram:
    """Histogram of durations.

    Args:
        bounds_sec: Upper bounds of the buckets in seconds; there is one more bucket without bound.
    """

    def __init__(self, bounds_sec: tuple[float, ...] = SECONDS) -> None:
        self.bounds_sec = bounds_sec
        self.counts = [0] * (len(bounds_sec) + 1)
        self.total_sec = 0.0

    def observe(self, sec: float) -> None:
        """Adds a duration."""
        self.counts[bisect_left(self.bounds_sec, sec)] += 1
        self.total_sec += sec


@dataclass
class Counts:
    """Statistics since the start.

    Args:
        sessions: Number of sessions opened.
        refused: Number of sessions refused.
        replies: Number of replies by reason of their end.
        rows: Number of rows generated, by modality.
        prefilled_rows: Number of prompt rows that were computed.
        cached_rows: Number of prompt rows that were cached.
        first_sound_sec: Times from the request to the first audio, in seconds.
    """

    sessions: int = 0
    refused: int = 0
    replies: Counter[Reason] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    prefilled_rows: int = 0
    cached_rows: int = 0
    first_sound_sec: Histogram = field(default_factory=Histogram)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Resets all counts."""
        vars(self).update(vars(Counts()))

    def reply(self, reason: Reason, usage: Usage) -> None:
        """Counts a finished reply."""
        with self._lock:
            self.replies[reason] += 1
            self.prefilled_rows += usage.prefilled_rows
            self.cached_rows += usage.cached_rows
            if usage.first_sound_sec is not None:
                self.first_sound_sec.observe(usage.first_sound_sec)
