"""Makes a spoken corpus from text: audio files and manifests, with the included English voice.

    python -m lit_moss prepare speak TEXT.txt|metadata.csv --out FOLDER [--first N] [--validation N]

A text file has one sentence per line; a .csv is the metadata of LJ Speech (`id|text|normalised text`), whose
ids become the file names. To continue an interrupted call, repeat it.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the stage."""
    parser.add_argument("text", type=Path, help="sentences, one a line, or LJ Speech's metadata.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--first", type=int, help="only this many sentences, from the first")
    parser.add_argument(
        "--validation", type=int, default=50, help="sentences at the end that are held out (default 50)"
    )


def main(args: argparse.Namespace) -> None:
    """Speaks the text file."""
    from lit_moss.prepare.speak_text import speak

    count = speak(args.text, args.out, args.first, args.validation)
    print(f"{args.out}/train.jsonl, {args.out}/validation.jsonl: {count} utterances")
