"""Raw audio and text -> what training reads. Stages:

manifest           a corpus -> a speech manifest (JSON lines)
documents          manifests and text -> token documents for the language model
speak              text -> a spoken corpus, by the embedded voice
kmeans-tokenizer   a speech tokenizer without training: k-means on a manifest's speech
everyday           the embedded corpus, made now rather than at first use
"""

import argparse

from lit_moss.data import make_documents as documents
from lit_moss.hub import kmeans
from lit_moss.prepare import make_manifest as manifest
from lit_moss.prepare import speak


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    one = stages.add_parser("manifest", help="a corpus -> a speech manifest", description=manifest.__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    manifest.add_arguments(one)
    one.set_defaults(run=manifest.main)
    three = stages.add_parser("documents", help="data -> token documents", description=documents.__doc__,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    documents.add_arguments(three)
    three.set_defaults(run=documents.main)
    four = stages.add_parser("speak", help="text -> a spoken corpus", description=speak.__doc__,
                             formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    speak.add_arguments(four)
    four.set_defaults(run=speak.main)
    five = stages.add_parser("kmeans-tokenizer", help="a tokenizer by k-means", description=kmeans.__doc__,
                             formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    kmeans.add_arguments(five)
    five.set_defaults(run=kmeans.main)
    two = stages.add_parser("everyday", help="the embedded corpus, made now rather than at first use")
    two.add_argument("--voices", action="store_true", help="twelve voices of Kokoro instead of one (slow)")
    two.set_defaults(run=_everyday)


def _everyday(args: argparse.Namespace) -> None:
    from lit_moss.corpora.everyday import EVERYDAY, VOICES, everyday_corpus

    print(everyday_corpus(name=VOICES if args.voices else EVERYDAY))


def main(args: argparse.Namespace) -> None:
    """Runs the chosen stage."""
    args.run(args)
