"""Makes a speech manifest from a corpus.

    python -m lit_moss prepare manifest --from KIND SOURCE --out manifest.jsonl

Only file headers are read, except for files that --max-sec cuts, and for up to 30 s of files with several
channels; files that are damaged further on are found by `tokenize`.
"""

import argparse
from pathlib import Path

from lit_moss.corpora.readers import READERS, Corpus
from lit_moss.errors import UserError
from lit_moss.prepare.make_manifest import ManifestOptions, make_manifest

_KIND_OF = {
    "download": "librispeech",
    "speaker_from_parent": "folder",
    "split": "hf",
    "subset": "hf",
    "audio_column": "hf",
    "text_column": "hf",
    "speaker_column": "hf",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the stage."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, dataset or file that holds the corpus")
    add("--from", dest="kind", required=True, choices=list(READERS), help="kind of corpus")
    add("--out", type=Path, required=True, metavar="JSONL", help="manifest to write")
    add("--force", action="store_true", help="overwrite existing output")
    add("--lang", help="language of all utterances, ISO 639-1 such as en; default: what the corpus states")
    add("--validation-out", type=Path, metavar="JSONL", help="manifest of the validation share")
    add("--validation-share", type=float, help="its share by hash of the id, between 0 and 1; default 0.1")
    add("--max-bad-share", type=float, default=0.01, help="stop above this share of unreadable files, 0 to 1")
    add(
        "--max-sec",
        type=float,
        metavar="SECONDS",
        help="cut longer utterances without text at pauses; default none",
    )
    add("--download", metavar="PART", help="librispeech: first fetch this part, e.g. dev-clean, into SOURCE")
    add("--speaker-from-parent", action="store_true", help="folder: the speaker is the folder's name")
    add("--split", help="hf: split of the dataset; default train")
    add("--subset", help="hf: configuration of a dataset that has several")
    add("--audio-column", help="hf: column of the sound; default audio")
    add("--text-column", help="hf: column of the transcript, none for none; default text, if any")
    add("--speaker-column", help="hf: column of the speaker's name; default none")


def main(args: argparse.Namespace) -> None:
    """Writes the manifest and, if requested, the validation manifest.

    Raises:
        UserError: if an option does not apply to this kind of corpus, and as in `make_manifest`.
    """
    given = vars(args)
    of_kinds = {name: given[name] for name in _KIND_OF}
    for name, value in of_kinds.items():
        if value and args.kind != _KIND_OF[name]:
            option = "--" + name.replace("_", "-")
            raise UserError(
                f"{option} belongs to --from {_KIND_OF[name]}, got --from {args.kind}: leave {option} out"
            )
    audio_folder = args.out.with_name(f"{args.out.stem}_audio")
    make_manifest(
        Corpus(args.source, args.kind, audio_folder, **of_kinds),
        ManifestOptions(
            out=args.out,
            force=args.force,
            lang=args.lang,
            validation_out=args.validation_out,
            validation_share=args.validation_share,
            max_bad_share=args.max_bad_share,
            max_sec=args.max_sec,
        ),
    )
