"""Makes the embedded corpus: 480 everyday English sentences, spoken by a neural voice. Prints its folder."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the stage."""
    parser.add_argument("--voices", action="store_true", help="twelve voices of Kokoro instead of one (slow)")


def main(args: argparse.Namespace) -> None:
    """Makes the corpus."""
    from lit_moss.corpora.everyday import EVERYDAY, VOICES, everyday_corpus

    print(everyday_corpus(name=VOICES if args.voices else EVERYDAY))
