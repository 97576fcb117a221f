"""Counts items whose sound files have a speaker on each side, of which only the first would be read."""

from collections.abc import Iterable

from lit_moss.audio.io import channels_differ
from lit_moss.prepare.stage import CHANNELS_DIFFER, Item, Result
from lit_moss.prepare.storage import local_copy


def note_channels(parts: Iterable[Item], result: Result) -> None:
    """Adds the number of utterances and messages that state no channel though those of their file differ.

    Args:
        parts: Utterances, or messages of conversations.
        result: Gets the count, and an example.
    """
    for part in parts:
        if part.get("channel") is None and part.get("audio_filepath") and has_other_speaker(part):
            result.counts[CHANNELS_DIFFER] = result.counts.get(CHANNELS_DIFFER, 0) + 1
            result.examples.setdefault(CHANNELS_DIFFER, str(part["audio_filepath"]))


def has_other_speaker(part: Item) -> bool:
    """Whether the file of an utterance or message has a channel that is not in the first one."""
    return channels_differ(local_copy(str(part["audio_filepath"])))
