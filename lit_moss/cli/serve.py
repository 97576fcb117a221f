"""Not written yet."""

import argparse

from lit_moss.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""


def main(args: argparse.Namespace) -> None:
    """Refuses."""
    raise UserError("this verb is not written yet")
