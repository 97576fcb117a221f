"""Stop texts: a text reply ends before the first one."""

from collections.abc import Sequence


class StopTexts:
    """Passes text on as it arrives, but holds back a possible beginning of a stop text.

    Args:
        stops: Texts before which the reply ends; empty: all text is passed on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = list(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Adds text; returns what can be passed on. After a stop text was found, nothing is."""
        if self.found:
            return ""
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """Returns what was held back, at the end of the reply."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
