"""Prepares training data from raw audio and text.

    python -m lit_moss prepare -c conf/prepare/NAME.yaml [SOURCE …] [--KEY VALUE …]     a chain of stages
    python -m lit_moss prepare STAGE SOURCE … --out DIR [--KEY VALUE …]                 a single stage

To continue a call that was killed, repeat it.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import PurePath

from lit_moss.cli.options import VerbParser
from lit_moss.cli.prepare import documents, everyday, kmeans_tokenizer, manifest, speak
from lit_moss.errors import UserError
from lit_moss.prepare.registry import STAGES as STAGES_OF_CHAINS

_Stage = tuple[
    str, str | None, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]
]
# Stage -> its line of help, description, function that adds options, function that runs it.
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
    """Adds the options of the stages that are not part of chains."""
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


def main(words: Sequence[str]) -> None:
    """Runs a chain, or a single stage.

    Args:
        words: A stage and its options, or the options of a chain.

    Raises:
        UserError: if the stage does not exist, and for other mistakes of the user.
    """
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    if words[0].startswith("-"):
        from lit_moss.cli.prepare.stages import run_chain_of

        run_chain_of(words)
    elif (words[0] in STAGES_OF_CHAINS or "." in words[0]) and not _is_text_to_speak(words):
        from lit_moss.cli.prepare.stages import run_stage

        run_stage(words[0], words[1:])
    elif words[0] in STAGES:
        parser = VerbParser(prog="python -m lit_moss prepare", description=__doc__)
        add_arguments(parser)
        args = parser.parse_args(list(words))
        args.run(args)
    else:
        known = [*STAGES_OF_CHAINS, *STAGES]
        raise UserError(
            f"no stage {words[0]!r} of prepare, expected one of {', '.join(dict.fromkeys(known))}"
        )


def overview() -> str:
    """The help text of the verb."""
    chains = "\n".join(f"  {name:<18} {summary}" for name, (_, _, summary) in STAGES_OF_CHAINS.items())
    others = "\n".join(f"  {name:<18} {summary}" for name, (summary, *_) in STAGES.items())
    ending = "python -m lit_moss prepare STAGE --help shows the options of a stage"
    return f"{__doc__}\nStages of chains:\n{chains}\n\nOthers:\n{others}\n\n{ending}"


def _is_text_to_speak(words: Sequence[str]) -> bool:
    """Whether `speak` is given plain text instead of conversations (JSON lines)."""
    return words[0] == "speak" and any(PurePath(w).suffix in (".txt", ".csv") for w in words[1:2])
