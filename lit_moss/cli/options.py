"""Options that several verbs share."""

import argparse


def add_log_mel_argument(parser: argparse.ArgumentParser) -> None:
    """`--log-mel` of verbs that open a speech tokenizer."""
    parser.add_argument(
        "--log-mel",
        choices=("causal", "whisper"),
        help="features of the speech tokenizer: whisper (released ones; whole recordings only) or causal "
        "(streams too); default: what its config.json states, whisper where it states none",
    )
