"""Text -> a spoken corpus: sound files and manifests, by the voice that comes with the project (English).

    python -m lit_moss prepare speak TEXT.txt|metadata.csv --out FOLDER [--first N] [--validation N]

A text file has one sentence a line; a .csv is LJ Speech's metadata (`id|text|normalised text`), whose ids
name the files. An interrupted call goes on where it was.
"""

import argparse
from pathlib import Path

from lit_moss.errors import UserError
from lit_moss.records import text_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stage."""
    parser.add_argument("text", type=Path, help="sentences, one a line, or LJ Speech's metadata.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--first", type=int, help="only the first so many sentences")
    parser.add_argument(
        "--validation", type=int, default=50, help="the last so many are held out (default 50)"
    )


def main(args: argparse.Namespace) -> None:
    """Speaks the file.

    Raises:
        UserError: if there is nothing to say, or less than is to be held out.
    """
    from lit_moss.corpora.everyday import hibari, speak_all

    named = read_sentences(args.text)[: args.first]
    if args.validation < 1:
        raise UserError(f"--validation is {args.validation}, expected 1 or more")
    if len(named) <= args.validation:
        raise UserError(
            f"{args.text} has {len(named)} sentences and {args.validation} are to be held out: give more "
            "text, or a smaller --validation"
        )
    speak_all(named, args.out.absolute(), hibari(), range(len(named) - args.validation, len(named)))
    print(f"{args.out}/train.jsonl, {args.out}/validation.jsonl: {len(named)} utterances")


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """Name and text of every sentence of a text file or LJ Speech's metadata."""
    found = []
    table = path.suffix.lower() == ".csv"
    for number, line in text_lines(path, "a text file"):
        fields = line.split("|") if table else [f"{path.stem}-{number - 1:06d}", line]
        if table and line.strip() and len(fields) < 2:
            raise UserError(f"{path}, line {number}: no `|`, expected id|text as LJ Speech's metadata.csv")
        if fields[-1].strip():
            found.append((fields[0].strip(), fields[-1].strip()))
    names = [name for name, _ in found]
    if len(set(names)) != len(names) or any(not n or Path(n).name != n for n in names):
        raise UserError(f"{path}: ids must be plain names, each once; expected lines of `id|text`")
    return found
