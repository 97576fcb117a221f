"""The parser of verbs, and options that several of them share."""

import argparse
from typing import NoReturn

from lit_moss.errors import UserError


class VerbParser(argparse.ArgumentParser):
    """Reports an error without the usage, which would fill the screen."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists the options)")


def add_log_mel_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--log-mel` to verbs that open a speech tokenizer."""
    parser.add_argument(
        "--log-mel",
        choices=("causal", "whisper"),
        help="features of the speech tokenizer: whisper (released ones; whole recordings only) or causal "
        "(streams too); default: what its config.json states, whisper where it states none",
    )


def add_vocoder_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--vocoder` to verbs that open a codec."""
    parser.add_argument(
        "--vocoder",
        metavar="NAME",
        help="what makes sound of mels: griffin-lim, a run of conf/vocoder.yaml (runs/vocoder), a "
        "checkpoint, a vocoder's or codec's folder, a file hift.pt (default: the codec's own; griffin-lim "
        "with a run)",
    )
