"""Options of `serve` and `chat`: model, codec, voices and precision."""

import argparse
from typing import TYPE_CHECKING

from lit_moss.cli.options import add_log_mel_argument, add_vocoder_argument
from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.serve.model import SpeechModel


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `open_model` reads."""
    parser.add_argument(
        "--model", required=True,
        help="folder that `export` or `import` wrote, run (runs/NAME), checkpoint, or hub id",
    )  # fmt: skip
    parser.add_argument(
        "--codec",
        help="decoder run, or folder in the released layout (default: codec/ in the model's folder; without "
        "a decoder, replies are text alone)",
    )
    add_log_mel_argument(parser)
    add_vocoder_argument(parser)
    parser.add_argument(
        "--voice", action="append", default=[], metavar="NAME=FILE",
        help="a voice to speak with: name and sound file, of which at most 10 s are used; may be repeated",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"),
        help="numbers of the language model (default: those of its files; float32 on a processor without "
        "units for bfloat16)",
    )  # fmt: skip


def open_model(args: argparse.Namespace) -> "SpeechModel":
    """Opens the model given by the options.

    Raises:
        UserError: if a voice is not NAME=FILE, and as in `SpeechModel.open`.
    """
    import torch

    from lit_moss.serve.model import SpeechModel

    voices = {}
    for voice in args.voice:
        name, is_given, file = voice.partition("=")
        if not (name and is_given and file):
            raise UserError(f"--voice is {voice!r}, expected NAME=FILE")
        voices[name] = file
    dtype = None if args.dtype is None else {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.dtype]
    return SpeechModel.open(args.model, args.codec, args.device, dtype, args.log_mel, voices, args.vocoder)
