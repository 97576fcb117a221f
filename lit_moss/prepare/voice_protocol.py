"""What a voice is, whoever speaks: an embedded model, an endpoint, a program of the user's."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Wording:
    """What a voice is to say, and how.

    Args:
        text: In spoken form (`lit_moss.prepare.spoken`).
        lang: Its language, ISO 639-1.
        speed: 1 is the voice's usual pace, 2 twice as fast.
        style: Such as `happy`; None for the voice's own. Voices with `takes_style` follow it.
        seed: Of what is random in the voice.
    """

    text: str
    lang: str
    speed: float = 1.0
    style: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Speech:
    """What a voice said.

    Args:
        wave: Samples (T,), float32.
        rate_hz: Their rate.
    """

    wave: np.ndarray
    rate_hz: int


class CannotSay(Exception):  # noqa: N818
    """A text that a voice cannot say.

    Args:
        reason: Name of the rule.
        value: What was found.
        threshold: What was expected.
        too_long: The text can be said in shorter pieces.
    """

    def __init__(
        self,
        reason: str,
        value: float | str | None = None,
        threshold: float | str | None = None,
        too_long: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {value}")
        self.reason, self.value, self.threshold, self.too_long = reason, value, threshold, too_long


class Voice(Protocol):
    """A voice of the pool.

    Attributes:
        speaker: Name of the speaker, for manifests.
        languages: ISO 639-1 codes that it speaks; None for any.
        takes_style: Whether it follows a style.
    """

    @property
    def speaker(self) -> str: ...

    @property
    def languages(self) -> tuple[str, ...] | None: ...

    @property
    def takes_style(self) -> bool: ...

    def content(self) -> dict[str, Any]:
        """What its sound depends on besides the wording; JSON without secrets. Loads nothing."""
        ...

    def open(self) -> None:
        """Loads what it needs; called once in each worker."""
        ...

    def say(self, wording: Wording) -> Speech:
        """Says a text.

        Raises:
            CannotSay: if it cannot say this text.
            UserError: if it can say no text at all.
        """
        ...
