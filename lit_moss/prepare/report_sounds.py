"""Sounds of the report: some that were kept, the worst that ASR did not understand, one of each rule.

They are copied, so that the report can be moved, and logged as artifacts.
"""

import heapq
import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

from lit_moss.audio import io
from lit_moss.errors import UserError
from lit_moss.prepare.report_data import StepFiles, final_steps
from lit_moss.prepare.stage import Item, item_id
from lit_moss.prepare.storage import Storage, local_copy

ERROR_RATES = ("word error rate", "character error rate")


class Sounds:
    """Chooses sounds, copies them and lists them in Markdown.

    Args:
        storage: Folder of the report.
        number: Sounds of a group.
        longest_sec: Where longer ones are cut.
        seed: Of the choice.

    Attributes:
        written: Number of sounds copied.
    """

    def __init__(self, storage: Storage, number: int, longest_sec: float, seed: int) -> None:
        self._storage, self._number, self._longest_sec, self._seed = storage, number, longest_sec, seed
        self.written = 0

    def of(self, steps: Sequence[StepFiles]) -> str:
        """The sounds of a chain: Markdown, empty if there are none."""
        if not self._number:
            return ""
        sounds = (sound for step in final_steps(steps) for sound in _sounds(step.items()))
        # Each sound's hash decides, not its place.
        kept = heapq.nsmallest(self._number, sounds, self._order)
        groups = [("Kept", [(sound, "") for sound in kept])]
        for step in steps:
            groups += self._rejected(step)
        parts = []
        for title, sounds in groups:
            if sounds:
                parts.append("\n".join([f"### {title}", "", *(self._line(*sound) for sound in sounds)]))
        return "\n\n".join(parts)

    def _order(self, part: Item) -> str:
        name = f"{item_id(part)} {part.get('offset')}"
        return sha256(f"{self._seed} {name}".encode()).hexdigest()

    def _rejected(self, step: StepFiles) -> list[tuple[str, list[tuple[Item, str]]]]:
        worst: list[tuple[float, str, dict[str, Any]]] = []
        first: dict[str, dict[str, Any]] = {}
        for rejection in step.rejections():
            reason, value = rejection["reason"], rejection.get("value")
            if reason in ERROR_RATES and isinstance(value, int | float):
                worst.append((value, self._order(rejection["item"]), rejection))
                worst = heapq.nlargest(self._number, worst, key=lambda entry: entry[:2])
            elif reason not in first and _failed(rejection["item"]):
                first[reason] = rejection
        groups = []
        if worst:
            groups.append((f"{step.name}: highest error rates", [_named(r) for _, _, r in worst]))
        if first:
            groups.append((f"{step.name}: one of each rule", [_named(r) for r in first.values()]))
        return groups

    def _line(self, part: Item, why: str) -> str:
        """A sound as a line of a list; it is copied."""
        stem = re.sub(r"[^\w.-]+", "_", item_id(part))[:60]
        try:
            path = local_copy(part["audio_filepath"])
            rate_hz = io.info(path).rate_hz
            offset_sec, duration_sec = part.get("offset") or 0.0, part.get("duration")
            wave = io.read(path, rate_hz, offset_sec, duration_sec, self._longest_sec, part.get("channel"))
        except (io.UnreadableAudio, UserError) as error:
            return f"- {stem}: {error}"
        self.written += 1
        name = f"audio/{self.written:03d}-{stem}.flac"
        self._storage.save_sound(name, wave.numpy(), rate_hz)
        said = next((key for key in ("spoken", "text", "content") if part.get(key)), "")
        texts = [f"{key}: {part[key]}" for key in (said, "heard") if part.get(key)]
        return "- " + "; ".join([f"[{stem}]({name})", *([why] if why else []), *texts]).replace("\n", " ")


def _sounds(items: Iterator[Item]) -> Iterator[Item]:
    """Utterances and messages that have a sound."""
    for item in items:
        if item.get("audio_filepath"):
            yield item
        for message in item.get("messages") or ():
            if message.get("audio_filepath"):
                yield message


def _failed(item: Item) -> Item | None:
    """The sound that was rejected: the utterance, or the message that is named; None without any."""
    messages = item.get("messages") or []
    if isinstance(item.get("failed_message"), int) and item["failed_message"] < len(messages):
        return messages[item["failed_message"]]
    return next(_sounds(iter([item])), None)


def _named(rejection: dict[str, Any]) -> tuple[Item, str]:
    value, threshold = rejection.get("value"), rejection.get("threshold")
    why = rejection["reason"] + ("" if value is None else f" {value}")
    why += "" if threshold is None else f" (limit {threshold})"
    return _failed(rejection["item"]) or {}, why
