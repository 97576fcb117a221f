"""The interface of all voices: embedded models, endpoints, and programs of the user."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Wording:
    """Text for a voice to speak, and how.

    Args:
        text: Text in spoken form (`lit_moss.prepare.spoken`).
        lang: Language of the text, ISO 639-1.
        speed: Speed; 1 is the voice's usual speed, 2 is twice as fast.
        style: Style such as `happy`; None: the voice's own. Used by voices with `takes_style`.
        seed: Seed of random choices of the voice.
    """

    text: str
    lang: str
    speed: float = 1.0
    style: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Speech:
    """Output of a voice.

    Args:
        wave: Samples (T,), float32.
        rate_hz: Sample rate in Hz.
    """

    wave: np.ndarray
    rate_hz: int


class CannotSay(Exception):  # noqa: N818
    """A text that a voice cannot speak.

    Args:
        reason: Name of the rule.
        value: What was found.
        threshold: Expected value.
        too_long: Whether the text can be spoken in shorter pieces.
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
        languages: ISO 639-1 codes of its languages; None: all.
        takes_style: Whether it supports styles.
    """

    @property
    def speaker(self) -> str: ...

    @property
    def languages(self) -> tuple[str, ...] | None: ...

    @property
    def takes_style(self) -> bool: ...

    def content(self) -> dict[str, Any]:
        """What its sound depends on besides the wording, as JSON without secrets. Loads nothing."""
        ...

    def open(self) -> None:
        """Loads models; called once per worker."""
        ...

    def say(self, wording: Wording) -> Speech:
        """Speaks a text.

        Raises:
            CannotSay: if it cannot speak this text.
            UserError: if it cannot speak any text.
        """
        ...
