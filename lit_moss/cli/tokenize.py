"""Encodes audio files to codes, one JSON line each: {"audio_filepath": …, "codes": […], "duration": seconds}.

Accepts files, folders (all sound files in and below them) and manifests (.jsonl), of any length. Unreadable
files are named and skipped; the exit code is then 1.
"""

import argparse
import sys
import time
from pathlib import Path

from lit_moss.cli.options import add_log_mel_argument
from lit_moss.errors import UserError
from lit_moss.files import check_can_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument(
        "audio", nargs="+", metavar="AUDIO", help="sound files, folders of them, or manifests (.jsonl)"
    )
    parser.add_argument(
        "--speech-tokenizer",
        required=True,
        help="checkpoint, folder or hub id; runs/NAME is the best of its newest run",
    )
    add_log_mel_argument(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="JSONL", help="file to write")
    parser.add_argument(
        "--batch-sec", type=float, default=240.0, help="seconds of audio computed at once (default 240)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--force", action="store_true", help="overwrite existing output")


def main(args: argparse.Namespace) -> None:
    """Tokenizes all files and prints one line."""
    from lit_moss.corpora.inputs import utterances_of
    from lit_moss.devices import moved
    from lit_moss.hub import open_tokenizer
    from lit_moss.hub.audio_to_codes import write_codes

    if args.out.exists() and not args.force:
        raise UserError(f"{args.out} exists: give another --out, or --force to overwrite it")
    if args.out.is_dir():
        raise UserError(f"{args.out} is a folder: expected the name of a file to write")
    check_can_write(args.out)
    if not args.batch_sec > 0:
        raise UserError(f"--batch-sec is {args.batch_sec}, expected seconds above 0")
    utterances = list(utterances_of(args.audio))
    tokenizer = moved(open_tokenizer(args.speech_tokenizer, args.log_mel), args.device)
    start = time.monotonic()
    written = write_codes(args.out, utterances, tokenizer, args.batch_sec)
    taken = time.monotonic() - start
    print(f"{args.out}: {written.files} files, {written.seconds / 60:.1f} min, {written.codes} codes, "
          f"{taken:.1f} s ({written.seconds / taken:.0f} x real time)")  # fmt: skip
    if written.reasons:
        examples = "; ".join(written.reasons[:5])
        more = " …" if len(written.reasons) > 5 else ""
        print(f"{len(written.reasons)} left out: {examples}{more}", file=sys.stderr)
        raise SystemExit(1)
