"""Raw audio and text -> what training reads. Stages:

manifest           a corpus -> a speech manifest (JSON lines)
documents          manifests and text -> token documents for the language model
speak              text -> a spoken corpus, by the embedded voice
kmeans-tokenizer   a speech tokenizer without training: k-means on a manifest's speech
everyday           the embedded corpus, made now instead of on first use
"""

import argparse
from collections.abc import Callable

from lit_moss.cli.prepare import documents, everyday, kmeans_tokenizer, manifest, speak

_Stage = tuple[
    str, str | None, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]
]
# Stage -> one line of help, its description, its options, what it does.
STAGES: dict[str, _Stage] = {
    "manifest": ("a corpus -> a speech manifest", manifest.__doc__, manifest.add_arguments, manifest.main),
    "documents": ("data -> token documents", documents.__doc__, documents.add_arguments, documents.main),
    "speak": ("text -> a spoken corpus", speak.__doc__, speak.add_arguments, speak.main),
    "kmeans-tokenizer": (
        "a speech tokenizer by k-means",
        kmeans_tokenizer.__doc__,
        kmeans_tokenizer.add_arguments,
        kmeans_tokenizer.main,
    ),
    "everyday": (
        "the embedded corpus, made now instead of on first use",
        everyday.__doc__,
        everyday.add_arguments,
        everyday.main,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, (summary, description, add_stage_arguments, run) in STAGES.items():
        stage = stages.add_parser(
            name,
            help=summary,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_stage_arguments(stage)
        stage.set_defaults(run=run)


def main(args: argparse.Namespace) -> None:
    """Runs the chosen stage."""
    args.run(args)
