"""Embedded stories: three sentences, how the story ends, and how it does not, in the manner of StoryCloze."""

from dataclasses import dataclass
from pathlib import Path

from lit_moss.records import json_lines

STORIES = "embedded:stories-en"
_FILE = Path(__file__).with_name("stories_en.jsonl")


@dataclass(frozen=True)
class Story:
    """A story.

    Args:
        id: Its name.
        context: Three sentences.
        ending: The sentence after them.
        wrong: One that does not fit them.
    """

    id: str
    context: str
    ending: str
    wrong: str


def stories() -> list[Story]:
    """All of them, in order."""
    return [Story(**record.content) for record in json_lines(_FILE, "a story")]
