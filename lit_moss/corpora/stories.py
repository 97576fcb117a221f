"""Embedded stories in the style of StoryCloze: three sentences with a right and a wrong ending."""

from dataclasses import dataclass
from pathlib import Path

from lit_moss.records import json_lines

STORIES = "embedded:stories-en"
_FILE = Path(__file__).with_name("stories_en.jsonl")


@dataclass(frozen=True)
class Story:
    """One story.

    Args:
        id: Unique name.
        context: Three sentences.
        ending: Sentence that follows them.
        wrong: Sentence that does not fit them.
    """

    id: str
    context: str
    ending: str
    wrong: str


def stories() -> list[Story]:
    """Returns all stories, in order."""
    return [Story(**record.content) for record in json_lines(_FILE, "a story")]
