"""Command line of a study: options, one-line error messages, exit codes."""

from collections.abc import Callable, Sequence
from typing import Any

from lit_moss.cli.yaml_options import OptionsParser
from lit_moss.errors import UserError
from lit_moss.runs.launch import RunError


def run_study(
    words: Sequence[str], options: type, command: str, doc: str | None, run: Callable[[Any], str]
) -> int:
    """Runs a study and prints its report; returns 2 for user errors, 1 if a run failed.

    Args:
        words: Options of the command line.
        options: Dataclass of the study's options.
        command: Command, for `--help`.
        doc: Description of the study, for `--help`.
        run: Function of the options that runs what is missing and returns the report.
    """
    try:
        values, _ = OptionsParser(options, command, doc).read(words)
        print(run(values))
    except UserError as error:
        print(f"error: {error}")
        return 2
    except RunError as error:
        print(f"error: {error}; repeat the command to continue")
        return 1
    return 0
