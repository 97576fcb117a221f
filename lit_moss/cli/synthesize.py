"""Decodes codes to sound files: JSON lines with `codes` (as written by `tokenize` or a model) -> DIR/ID.wav.

Each line is {"codes": […], "id": …}, or has an `audio_filepath`, whose name replaces the id. Any length is
allowed; more than 60 s are decoded as a stream. With --stream every file is decoded chunk by chunk, as in a
conversation, and the computing time until the first audio is printed.
"""

import argparse
import time
from pathlib import Path

from lit_moss.cli.options import add_log_mel_argument, add_vocoder_argument
from lit_moss.errors import UserError

BATCH_CODES = 750


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument(
        "codes", type=Path, metavar="JSONL", help="JSON lines with codes; - for standard input"
    )
    parser.add_argument(
        "--codec", required=True, help="decoder run (runs/NAME), checkpoint, folder in the released layout"
    )
    add_log_mel_argument(parser)
    add_vocoder_argument(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the sound files")
    parser.add_argument(
        "--voice-prompt",
        metavar="FILE",
        help="sound file of the voice to speak with; at most 10 s of it are used (default: the mean voice of "
        "the training)",
    )
    parser.add_argument("--stream", action="store_true", help="write each file chunk by chunk")
    parser.add_argument(
        "--batch-codes",
        type=int,
        help=f"codes computed at once, padding included (default {BATCH_CODES}); not with --stream",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def main(args: argparse.Namespace) -> None:
    """Writes all files and prints one line; existing files are detected before anything is computed."""
    from lit_moss.audio import rates
    from lit_moss.devices import moved
    from lit_moss.hub import open_codec
    from lit_moss.hub.codes_to_audio import (
        check_codes,
        read_code_lines,
        voice_prompt,
        write_batches,
        write_streams,
    )

    lines = read_code_lines(args.codes)
    if args.stream and args.batch_codes is not None:
        raise UserError("--batch-codes with --stream, which computes one file after the other: leave one out")
    batch_codes = BATCH_CODES if args.batch_codes is None else args.batch_codes
    if batch_codes < 1:
        raise UserError(f"--batch-codes is {batch_codes}, expected 1 or more")
    existing = [path for line in lines if (path := args.out / f"{line.name}.wav").exists()]
    if existing and not args.force:
        raise UserError(f"{existing[0]} exists: give another --out, or --force to overwrite")
    codec = moved(open_codec(args.codec, args.log_mel, args.vocoder), args.device)
    check_codes(lines, codec)
    prompt = voice_prompt(codec, args.voice_prompt)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be made ({error.strerror}): expected a folder") from error
    start, latency = time.monotonic(), ""
    if args.stream:
        latency = f", first sound after {write_streams(codec, lines, prompt, args.out):.2f} s"
    else:
        write_batches(codec, lines, prompt, args.out, batch_codes)
    taken = time.monotonic() - start
    seconds = sum(len(line.codes) for line in lines) * rates.SECONDS_PER_CODE
    print(f"{args.out}: {len(lines)} files, {seconds / 60:.1f} min, {taken:.1f} s "
          f"({seconds / taken:.1f} x real time){latency}")  # fmt: skip
