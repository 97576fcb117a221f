"""Base classes of the stages of data preparation.

A stage maps items to items. An item is a line of a manifest (JSON), with the keys of
`lit_moss.corpora.manifest` (`audio_filepath`, `offset`, `duration`, `text`, `speaker`, `lang`) or of
`lit_moss.corpora.conversations` (`messages`), and any others. `Stage` processes one unit at a time, usually a
single item, and does not deal with shards, workers and files: `lit_moss.prepare.engine` reads, distributes,
resumes and writes. `WholeStage` needs all items at once.

    items ─ units ─┬─ run(unit) ─ Result ─┐
                   ├─ run(unit) ─ Result ─┼─ manifest.jsonl   output, in the order of the input
                   └─ …                   ┘  rejected.jsonl   rejected items, with reasons

The result of `run` depends only on the unit, the options and the version, not on the worker or on earlier
units. Random choices are seeded by the item's content (`lit_moss.data.interleave.document_rng`).
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
        reason: Name of the rule, such as `characters per second`.
        value: Measured value.
        threshold: Expected value.
        step: The step that rejected it; filled in by the engine.
    """

    item: Item
    reason: str
    value: float | str | None = None
    threshold: float | str | None = None
    step: str = ""


@dataclass
class Result:
    """Result of a stage for one unit.

    Args:
        items: Lines of the stage's manifest.
        rejected: Items that were left out.
        counts: Additional counts, summed over all units: `{"words": 12}`.
        examples: Name of a count -> an item or file that was counted; the first one of all units is kept.
        speech_sec_in: Seconds of input audio, if the items do not state their durations.
    """

    items: list[Item] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    speech_sec_in: float | None = None


CHANNELS_DIFFER = "sounds whose channels differ"


class _Named(ABC):
    """Base class of all stages.

    Args:
        options: Instance of the class `Options`.
        storage: Folder of the step, for audio and other files to which its items refer.

    Attributes:
        name: Name on the command line: `prepare NAME`.
        version: Increase it when the same unit and options give another result.
        reads: Default input within a chain: the previous step, or all earlier steps.
        needs: Keys of which each item must have at least one; otherwise the step ends before it begins.
        Options: A dataclass; every field has a default and a line under `Args:`. A field with
            `metadata=NOT_CONTENT` (a device, the name of a variable with a key) does not affect the result.
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
        """Items of a source that is not a manifest (a sound file, a folder, Parquet); None for a manifest.

        Raises:
            UserError: if the source cannot be read.
        """
        return None

    def content(self) -> dict[str, Any]:
        """What the result depends on besides the items, as JSON. Models are identified by fingerprints."""
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
    """A stage that processes one unit at a time."""

    def units(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Groups consecutive items into units: single items, or batches that depend only on the content.

        Called before `open`, in the process that distributes the work.
        """
        for item in items:
            yield [item]

    def is_light(self) -> bool:
        """Whether an item takes about a millisecond, so that starting workers costs more than they save."""
        return False

    def open(self) -> None:
        """Loads models; called once per worker, before the first `run`."""

    @abstractmethod
    def run(self, unit: Sequence[Item]) -> Result:
        """Processes one unit.

        Raises:
            UnreadableAudio: if the unit's audio cannot be read: the engine rejects its items and counts them.
            UserError: stops the whole run.
        """


class WholeStage(_Named):
    """A stage that needs all items at once, for example to remove duplicates or to write documents.

    Attributes:
        max_bad_share: Maximum fraction of unreadable recordings, 0 to 1; set by its step.
    """

    max_bad_share: float = 0.01

    @abstractmethod
    def run_all(self, sources: Sequence[str]) -> Result:
        """Runs the stage on manifests.

        Files in `storage` must be written atomically. A killed run is repeated.

        Returns:
            Items, rejections and counts. There may be no items if the output is a folder of documents.
        """

    def files_made(self, counts: Mapping[str, float]) -> list[str]:
        """Names of files that a finished run with these counts has left next to its manifest.

        If one of them is missing, the stage is run again.
        """
        return []


NOT_CONTENT = {"not_content": True}


# Keys of an utterance or message that depend on its audio: other audio of the same text has other values.
OF_A_SOUND = (
    *("audio_filepath", "offset", "duration", "channel", "speaker", "spoken", "heard", "wer", "edits"),
    *("words", "chunks", "codes", "use", "asr", "asr_words", "align_score", "aligner"),
    *("lang_prob", "avg_logprob", "no_speech_prob", "speech_prob", "speech_share"),
)


# Keys that depend on audio and text: another text has other values.
OF_A_TEXT = ("spoken", "written", "heard", "wer", "edits", "words", "chunks", "use", "align_score", "aligner")


def without_sound(item: Item) -> Item:
    """An utterance or message without its audio and everything measured from it."""
    return {key: value for key, value in item.items() if key not in OF_A_SOUND}


def item_id(item: Item) -> str:
    """A name of the item for messages: its `id`, otherwise its file name and offset."""
    if item.get("id") not in (None, ""):
        return printable(str(item["id"]))
    stem = PurePosixPath(str(item.get("audio_filepath", ""))).stem
    offset = item.get("offset") or 0.0
    return printable(stem + (f"@{offset:.3f}" if offset else "") or str(item.get("text", ""))[:40])
