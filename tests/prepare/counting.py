"""A stage without a model, for the tests of the engine: counts the letters of texts, slowly if asked to."""

import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_moss.audio.io import UnreadableAudio
from lit_moss.prepare.stage import NOT_CONTENT, Item, Rejection, Result, Stage, WholeStage


@dataclass
class CountingOptions:
    """Options.

    Args:
        least: Texts with fewer letters are rejected.
        batch: Items of a unit.
        seconds: Waits that long for each unit.
        kill_at: The process kills itself before the item of this id, if the file of `once` is not there.
        once: That file.
    """

    least: int = 0
    batch: int = 1
    seconds: float = field(default=0.0, metadata=NOT_CONTENT)
    kill_at: str | None = field(default=None, metadata=NOT_CONTENT)
    once: str = field(default="", metadata=NOT_CONTENT)


class CountingStage(Stage):
    name = "counting"
    Options = CountingOptions

    def units(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        batch: list[Item] = []
        for item in items:
            batch.append(item)
            if len(batch) == self.options.batch:
                yield batch
                batch = []
        if batch:
            yield batch

    def open(self) -> None:
        self._opened_by = os.getpid()

    def run(self, unit: Sequence[Item]) -> Result:
        assert self._opened_by == os.getpid()
        result = Result()
        for item in unit:
            time.sleep(self.options.seconds)
            if item["id"] == self.options.kill_at and not Path(self.options.once).exists():
                Path(self.options.once).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if item["text"] == "unreadable":
                raise UnreadableAudio(f"{item['id']}: unreadable")
            letters = len(item["text"])
            if letters < self.options.least:
                result.rejected.append(Rejection(item, "too short", letters, self.options.least))
                continue
            result.counts["letters"] = result.counts.get("letters", 0) + letters
            out: dict[str, Any] = {**item, "letters": letters, "neighbours": [i["id"] for i in unit]}
            if letters % 3 == 0:
                out["audio_filepath"] = self.storage.save_sound(f"audio/{item['id']}.flac", [0.1] * 80, 8000)
                out["duration"] = 0.01
            result.items.append(out)
        return result


class BarStage(CountingStage):
    """Shows a bar in its worker, as the code cache does: tqdm makes a semaphore for it."""

    def open(self) -> None:
        from tqdm import tqdm

        super().open()
        list(tqdm([1]))


class LongestStage(WholeStage):
    name = "longest"
    Options = CountingOptions

    def run_all(self, sources: Sequence[str]) -> Result:
        from lit_moss.prepare.items import resolved_items

        items = sorted(resolved_items(sources), key=lambda item: -item["letters"])
        return Result(items=items[:1], counts={"most letters": items[0]["letters"]})
