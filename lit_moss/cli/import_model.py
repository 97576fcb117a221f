"""Converts a released model and its codec to one folder, from which fit, evaluate and serve can start.

    python -m lit_moss import fnlp/MOSS-Speech --codec fnlp/MOSS-Speech-Codec --out models/moss

Names, shapes and data types of all tensors are checked against config.json. Weights are hard-linked if the
file system supports it, otherwise copied. A folder that `export` wrote is checked and copied.
"""

import argparse
from pathlib import Path

from lit_moss.cli.options import add_log_mel_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("model", metavar="MODEL", help="hub id (owner/name) or folder, with safetensors")
    parser.add_argument(
        "--codec",
        metavar="CODEC",
        help="hub id, folder, run or checkpoint of the codec, or of a speech tokenizer alone; default: the "
        "codec/ in the model's folder, if it has one",
    )
    add_log_mel_argument(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace an existing folder")


def main(args: argparse.Namespace) -> None:
    """Imports the model and prints what the folder contains."""
    from lit_moss.release.import_model import import_model

    made = import_model(args.model, args.out, args.codec, args.log_mel, args.force)
    how = "linked" if made.linked else "copied"
    print(f"{made.folder}: {made.tensors} tensors in {made.files} files, {made.gigabytes:.2f} GB, {how}")
    record = made.record
    codec = record.speech_tokenizer or "unknown: give it by --codec wherever the model is used"
    print(f"text tokenizer {record.text_tokenizer}; speech tokenizer {codec}")
    print(f"licence {record.license or 'unknown'}")
    print(f"fine-tune it: fit -c conf/finetune/full.yaml --model.init_args.init_from {made.folder}")
