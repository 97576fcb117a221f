"""Text -> a spoken corpus."""

from pathlib import Path

from lit_moss.corpora.everyday import hibari, speak_all
from lit_moss.corpora.text import read_named_sentences
from lit_moss.errors import UserError


def speak(text: Path, out: Path, first: int | None = None, validation: int = 50) -> int:
    """Speaks a text list into a folder: `audio/NAME.flac`, `train.jsonl`, `validation.jsonl`.

    Args:
        text: See `read_named_sentences`.
        out: Folder of the corpus; sound files of the same text in it are kept.
        first: Only this many sentences, from the first; None for all.
        validation: Sentences at the end that are held out, 1 or more.

    Returns:
        Number of sentences.

    Raises:
        UserError: if there is no text, or not more of it than is to be held out.
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
