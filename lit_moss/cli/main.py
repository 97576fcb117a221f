"""Command line: the table of verbs, and how each verb is started.

Large libraries are imported only when the verb is known, so that `--help` answers in a fraction of a second.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from lit_moss import __version__
from lit_moss.cli.options import VerbParser
from lit_moss.errors import UserError

TRAINER_VERBS = {
    "fit": "train by a recipe: fit -c conf/codec_encoder.yaml [--ckpt_path last]",
    "validate": "one pass over the validation data: validate -c … --ckpt_path best",
    "test": "one pass over the test data",
    "predict": "codes and transcripts of the validation data, or replies to prompts",
}
# verb -> (module with add_arguments(parser) and main(args), one line of help)
VERBS = {
    "prepare": ("lit_moss.cli.prepare", "raw audio and text -> manifests and documents"),
    "tokenize": ("lit_moss.cli.tokenize", "audio files -> codes as JSON lines"),
    "synthesize": ("lit_moss.cli.synthesize", "codes as JSON lines -> sound files"),
    "evaluate": (
        "lit_moss.cli.evaluate",
        "benchmarks: evaluate resynthesis -c conf/evaluate/resynthesis.yaml",
    ),
    "sweep": (
        "lit_moss.cli.sweep",
        "many settings of a run, by Optuna: sweep -c conf/sweep/split_depth.yaml",
    ),
    "export": ("lit_moss.cli.export", "a run or checkpoint -> a folder in the released layout"),
    "import": ("lit_moss.cli.import_model", "a released model and codec -> one folder to start from"),
    "serve": ("lit_moss.cli.serve", "a server: OpenAI's chat completions with audio, and Realtime"),
    "chat": ("lit_moss.cli.chat", "talk to a model: a page, or one question from a sound file"),
}
# Verbs that read a YAML build their parser from the class that describes it; their modules have main(words).
YAML_VERBS = ("evaluate", "prepare", "sweep")


def main(argv: Sequence[str]) -> int:
    """Runs a verb and returns the exit code.

    0: done; 2: mistake of the user (one line on stderr); 130: interrupted; 143: stopped by SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # so that file names that are not UTF-8 can be printed
            stream.reconfigure(errors="backslashreplace")
    try:
        return _dispatch(list(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        saved = (
            ", the state is saved: resume with --ckpt_path last" if getattr(error, "is_saved", False) else ""
        )
        print(f"interrupted{saved}", file=sys.stderr)
        return 130
    except SystemExit as error:
        # Compared by name, because only the verbs that train import lightning.
        if type(error).__name__ != "SIGTERMException":
            raise
        saved = ", the state is saved: resume with --ckpt_path last"
        if not getattr(error, "is_saved", False):
            saved = "; no state was saved: training had not begun, or no callbacks.Checkpoint writes any"
        print(f"stopped by SIGTERM{saved}", file=sys.stderr)
        return 143


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"lit_moss {__version__}")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb in TRAINER_VERBS:
        if rest and rest[0] in ("-h", "--help"):
            print(_trainer_help(verb))
            return 0
        run_lightning([verb, *("--help" if word == "--help-all" else word for word in rest)])
        return 0
    if verb not in VERBS:
        raise UserError(f"no verb {verb!r}, expected one of {', '.join([*TRAINER_VERBS, *VERBS])}")
    module = importlib.import_module(VERBS[verb][0])
    if verb in YAML_VERBS:
        module.main(rest)
        return 0
    parser = VerbParser(
        prog=f"python -m lit_moss {verb}", description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    module.add_arguments(parser)
    module.main(parser.parse_args(rest))
    return 0


def _overview() -> str:
    lines = ["usage: python -m lit_moss VERB [options]", ""]
    for verb, text in (TRAINER_VERBS | {verb: text for verb, (_, text) in VERBS.items()}).items():
        lines.append(f"  {verb:<10} {text}")
    return "\n".join([*lines, "", "python -m lit_moss VERB --help shows the options of a verb"])


def _trainer_help(verb: str) -> str:
    return f"""usage: python -m lit_moss {verb} -c CONF.yaml [-c MORE.yaml …] [--KEY VALUE …]

{TRAINER_VERBS[verb]}

  -c, --config FILE      recipe (YAML); several are merged from left to right. conf/… is also looked up among
                         the recipes that come with lit_moss
  --KEY VALUE            any key of the recipe by its dotted name: --trainer.max_steps 100 --model.lr 2e-3
  --ckpt_path PATH       a checkpoint, a run's folder, or `last` or `best` of the newest run of this name;
                         `auto` continues that run, and begins one where there is none
  --name NAME            name of the runs' folder and of the MLflow experiment
  --run_name NAME        folder of this run below it; by default the time
  --print_config         print the whole resolved configuration and exit
  --help-all             every key with its meaning

Metrics, pictures and sounds go to MLflow ($MLFLOW_TRACKING_URI, else mlflow.db here); `mlflow ui` shows
them."""


def _check_callbacks() -> None:
    """In an editable install, a `callbacks` package of another distribution may shadow ours."""
    import callbacks
    import lit_moss

    expected = os.path.dirname(os.path.dirname(os.path.abspath(lit_moss.__file__)))
    folder = os.path.dirname(os.path.dirname(os.path.abspath(callbacks.__file__ or "")))
    if folder != expected:
        raise UserError(
            f"`callbacks` is imported from {folder}, expected {expected}: another package of that name "
            "shadows ours; remove it or run from the project's folder"
        )


def run_lightning(args: list[str]) -> Any:
    """Runs LightningCLI with lit_moss' defaults; returns the CLI object after the verb has finished.

    Raises:
        UserError: for mistakes of the user.
    """
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    _check_callbacks()
    from lit_moss.cli.fit import MossCLI

    return MossCLI.run(args)
