"""What a stage of data preparation is.

A stage maps items to items. An item is one line of a manifest (JSON), with the keys of
`lit_moss.corpora.manifest` (`audio_filepath`, `offset`, `duration`, `text`, `speaker`, `lang`) or of
`lit_moss.corpora.conversations` (`messages`), and any others. `Stage` works on one unit at a time, usually a
single item, and knows nothing of shards, workers and files: `lit_moss.prepare.engine` reads, distributes,
resumes and writes. `WholeStage` needs all items at once.

    items ─ units ─┬─ run(unit) ─ Result ─┐
                   ├─ run(unit) ─ Result ─┼─ manifest.jsonl   what came out, in the order of what went in
                   └─ …                   ┘  rejected.jsonl   what did not, and why

What `run` returns depends on the unit, the options and the version alone: not on the worker, nor on what was
run before. Random choices are seeded by the item's content (`lit_moss.data.interleave.document_rng`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from lit_moss.prepare.items import Item
from lit_moss.prepare.storage import Storage
from lit_moss.records import printable


@dataclass(frozen=True)
class Rejection:
    """An item that was left out.

    Args:
        item: The item.
        reason: Name of the rule: `characters per second`.
        value: What was measured.
        threshold: What was expected.
        step: The step that rejected it; filled in by the engine.
    """

    item: Item
    reason: str
    value: float | str | None = None
    threshold: float | str | None = None
    step: str = ""


@dataclass
class Result:
    """What a stage made of one unit.

    Args:
        items: Lines of the stage's manifest.
        rejected: Items that were left out.
        counts: Further numbers, added up over all units: `{"words": 12}`.
        examples: Name of a count -> an item or file that was counted; of all units, the first one stays.
        speech_sec_in: Seconds of sound that went in, where the items do not state their durations.
    """

    items: list[Item] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    speech_sec_in: float | None = None


CHANNELS_DIFFER = "sounds whose channels differ"


class _Named(ABC):
    """What all stages have.

    Args:
        options: Of the class `Options`.
        storage: Folder of the step, for sounds and other files that its items name.

    Attributes:
        name: As on the command line: `prepare NAME`.
        version: Raise it when the same unit and options give another result.
        reads: Which earlier steps of a chain it reads if its step does not say: the previous one, or all.
        needs: Keys of which each item must have one; where it has none, the step ends before it begins.
        Options: A dataclass; every field has a default and a line under `Args:`. A field with
            `metadata=NOT_CONTENT` (a device, the name of a variable with a key) does not change the result.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reads: ClassVar[Literal["previous", "all"]] = "previous"
    needs: ClassVar[tuple[str, ...]] = ()
    Options: ClassVar[type]

    def __init__(self, options: Any, storage: Storage) -> None:
        self.options, self.storage = options, storage

    @classmethod
    def read_source(cls, source: str) -> Iterator[Item] | None:
        """Items of a source that is no manifest (a sound file, a folder, Parquet); None if it is one.

        Raises:
            UserError: if the source cannot be read.
        """
        return None

    def content(self) -> dict[str, Any]:
        """What the result depends on besides the items; JSON. Models are named by their fingerprints."""
        return {
            f.name: getattr(self.options, f.name)
            for f in fields(self.options)
            if not f.metadata.get("not_content")
        }

    def notes(self, counts: Mapping[str, float], examples: Mapping[str, str]) -> list[str]:
        """Lines that the user sees after the step has run, such as a warning with a number and an example.

        Args:
            counts: The step's counts.
            examples: Its examples, see `Result`.
        """
        number, example = int(counts.get(CHANNELS_DIFFER, 0)), examples.get(CHANNELS_DIFFER)
        if not number:
            return []
        return [
            f"{CHANNELS_DIFFER}: {number}, e.g. {example}: of these the first channel was read alone; if "
            "each side is a speaker, give each channel a line of its own with `channel` "
            "(docs/data.md#channels)"
        ]


class Stage(_Named):
    """A stage that works on one unit at a time."""

    def units(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Consecutive items that are run together: each alone, or batches that follow from the content.

        Called before `open`, in the process that distributes the work.
        """
        for item in items:
            yield [item]

    def is_light(self) -> bool:
        """Whether an item takes about a millisecond: starting workers then costs more than they save."""
        return False

    def open(self) -> None:
        """Loads models; called once in each worker, before the first `run`."""

    @abstractmethod
    def run(self, unit: Sequence[Item]) -> Result:
        """Runs one unit.

        Raises:
            UnreadableAudio: if the unit's sound cannot be read: the engine rejects its items and counts them.
            UserError: stops the whole run.
        """


class WholeStage(_Named):
    """A stage that needs all items at once, such as one that removes duplicates or writes documents.

    Attributes:
        max_bad_share: Share of unreadable recordings, 0 to 1, above which it fails; its step's.
    """

    max_bad_share: float = 0.01

    @abstractmethod
    def run_all(self, sources: Sequence[str]) -> Result:
        """Runs the stage on manifests.

        Files that it writes in `storage` must appear whole or not at all. A killed run is run again.

        Returns:
            Its items, rejections and counts. Items may be none, where the output is a folder of documents.
        """

    def files_made(self, counts: Mapping[str, float]) -> list[str]:
        """Names of files that a finished run with these counts has left beside its manifest.

        Where one of them is gone, the stage is run again.
        """
        return []


NOT_CONTENT = {"not_content": True}


# Keys of an utterance or message that say something of its sound: another sound of the same text has others.
OF_A_SOUND = (
    *("audio_filepath", "offset", "duration", "channel", "speaker", "spoken", "heard", "wer", "edits"),
    *("words", "chunks", "codes", "use", "asr", "asr_words", "align_score", "aligner"),
    *("lang_prob", "avg_logprob", "no_speech_prob", "speech_prob", "speech_share"),
)


# Those that say something of sound and text together: another text has others.
OF_A_TEXT = ("spoken", "written", "heard", "wer", "edits", "words", "chunks", "use", "align_score", "aligner")


def without_sound(item: Item) -> Item:
    """An utterance or message without its sound and what was measured of it."""
    return {key: value for key, value in item.items() if key not in OF_A_SOUND}


def item_id(item: Item) -> str:
    """A name of the item to show: its `id`, else its file's name and offset."""
    if item.get("id") not in (None, ""):
        return printable(str(item["id"]))
    stem = PurePosixPath(str(item.get("audio_filepath", ""))).stem
    offset = item.get("offset") or 0.0
    return printable(stem + (f"@{offset:.3f}" if offset else "") or str(item.get("text", ""))[:40])
