"""Stop texts: cut the answer where one begins, and let no part of one through. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """Passes text on until a stop text begins in it, whatever pieces the text comes in.

    Of several the one that is complete first counts, as where a model stops by itself. What could be
    the beginning of a stop text is held back until it is known not to be one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.has_stopped = False

    def feed(self, text: str) -> str:
        """Return what may be passed on now. After a stop text: nothing any more."""
        if self.has_stopped:
            return ""
        text = self._held + text
        found = [
            (place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0
        ]
        if found:
            self._held, self.has_stopped = "", True
            _, begin = min(found)
            return text[:begin]
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_beginning(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of a stop text."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

    def flush(self) -> str:
        """Return what was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held
