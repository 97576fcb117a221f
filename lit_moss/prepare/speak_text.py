"""Makes a spoken corpus from text."""

from pathlib import Path

from lit_moss.corpora.everyday import hibari, speak_all
from lit_moss.corpora.text import read_named_sentences
from lit_moss.errors import UserError


def speak(text: Path, out: Path, first: int | None = None, validation: int = 50) -> int:
    """Speaks a text list into a folder: `audio/NAME.flac`, `train.jsonl`, `validation.jsonl`.

    Args:
        text: Text list, see `read_named_sentences`.
        out: Folder of the corpus; existing sound files of the same text are reused.
        first: Number of sentences, from the first; None: all.
        validation: Number of sentences at the end that are held out, at least 1.

    Returns:
        Number of sentences.

    Raises:
        UserError: if there is no text, or no more of it than is to be held out.
    """
    named = read_named_sentences(text)[:first]
    if validation < 1:
        raise UserError(f"--validation is {validation}, expected 1 or more")
    if len(named) <= validation:
        raise UserError(
            f"{text} has {len(named)} sentences and {validation} are to be held out: give more text, or a "
            "smaller --validation"
        )
    speak_all(named, out.absolute(), hibari(), range(len(named) - validation, len(named)))
    return len(named)
