"""A stage that finds a mistake of the user in every item."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_moss.errors import UserError
from lit_moss.prepare.stage import Item, Result, Stage


@dataclass
class RefusingOptions:
    """None."""


class Refusing(Stage):
    """Refuses."""

    name = "refusing"
    Options = RefusingOptions

    def run(self, unit: Sequence[Item]) -> Result:
        raise UserError(f"{unit[0]['id']} is refused: expected another one")
