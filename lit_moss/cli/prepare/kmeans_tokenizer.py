"""Makes a speech tokenizer without training: Whisper-tiny's encoder, run causally, with a codebook of k-means
centres of its pooled frames over the speech of a manifest. Sufficient to try a language model before a
tokenizer has been trained.
"""

import argparse
from pathlib import Path

from lit_moss.errors import UserError

_CODES = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the stage."""
    parser.add_argument("manifest", type=Path, help="speech whose frames the codes stand for")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder, released layout")
    parser.add_argument("--codes", type=int, default=_CODES, help=f"codebook entries (default {_CODES})")
    parser.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="encoder layers to keep, 1 to 4 (default 4). Lower layers hold more of the sound, higher ones "
        "more of the words: take 1 or 2 for a decoder to resynthesise",
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing output")


def main(args: argparse.Namespace) -> None:
    """Makes the tokenizer."""
    if args.codes < 2:
        raise UserError(f"--codes is {args.codes}, expected 2 or more")
    if (args.out / "model.safetensors").exists() and not args.force:
        raise UserError(f"{args.out} holds a tokenizer: give another --out, or --force to overwrite it")
    from lit_moss.hub import speech_tokenizer_fingerprint
    from lit_moss.hub.kmeans import make_kmeans_tokenizer

    make_kmeans_tokenizer(args.manifest, args.codes, args.layers).save_pretrained(args.out)
    print(f"{args.out}: {args.codes} codes, fingerprint {speech_tokenizer_fingerprint(str(args.out))}")
