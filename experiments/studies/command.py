"""The command line of a study: options, one line for what went wrong, exit codes."""

from collections.abc import Callable, Sequence
from typing import Any

from lit_moss.cli.yaml_options import OptionsParser
from lit_moss.errors import UserError
from lit_moss.runs.launch import RunError


def run_study(
    words: Sequence[str], options: type, command: str, doc: str | None, run: Callable[[Any], str]
) -> int:
    """Runs a study and prints its report; 2 for what the user can correct, 1 if a run failed.

    Args:
        words: Options of the command line.
        options: The dataclass of the study's options.
        command: The command, for help.
        doc: What the study does, for help.
        run: Makes what is missing, and returns the report.
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
