"""The events of a request's turns, for one reader or for several.

A request may need several turns (`n`), and a retry of a request that still runs reads the turns of
the first one instead of paying for its own. So events are kept until the last reader has left, and
each reader has a place of its own in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from proxy.engines.base import Event
from proxy.engines.running import RunningTurn
from proxy.errors import TurnStopped


class Feed:
    """Owns the turns; ends them when nobody reads them any more."""

    def __init__(self, turns: Sequence[RunningTurn]) -> None:
        self.turns = list(turns)
        self._events: list[tuple[int, Event]] = []
        self._news = asyncio.Event()
        self._readers = 0
        self._is_closing = False
        self.is_cost_noted = False
        """Whether one of its requests has the turns' tokens in its row: they were spent once."""
        for turn in self.turns:
            turn.share_news(self._news)

    @property
    def is_running(self) -> bool:
        return not self._is_closing and any(not turn.is_over for turn in self.turns)

    @property
    def has_ended(self) -> bool:
        """Whether all turns have come to their end, cleaned up behind or not."""
        return all(turn.is_over for turn in self.turns)

    @property
    def has_readers(self) -> bool:
        return self._readers > 0

    def when_over(self, callback: Callable[[], None]) -> None:
        """Call back once all turns have ended and their engine has cleaned up behind them."""
        left = set(range(len(self.turns)))

        def one_is_over(index: int) -> None:
            left.discard(index)
            if not left:
                callback()

        for index, turn in enumerate(self.turns):
            turn.when_over(partial(one_is_over, index))

    def join(self) -> Reader:
        """Return a reader from the first event on. It must be closed."""
        self._readers += 1
        return Reader(self)

    async def leave(self, grace_s: float) -> None:
        """Go; the last one's turns end after `grace_s` seconds in which nobody joins."""
        self._readers -= 1
        if self._readers == 0 and self.is_running and grace_s:
            await asyncio.sleep(grace_s)
        if self._readers == 0:
            self._is_closing = True
            await asyncio.gather(*(turn.aclose() for turn in self.turns))

    def stop(self, index: int) -> None:
        """Nothing more is wanted of this turn."""
        self.turns[index].stop(TurnStopped("The answer was complete."))

    async def get(self, position: int, timeout_s: float | None) -> tuple[int, Event] | None:
        """Return which turn said what at this position, or None when the time passes first."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._collect()
                    if position < len(self._events):
                        return self._events[position]
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return None

    def _collect(self) -> None:
        for index, turn in enumerate(self.turns):
            while (event := turn.pop_event()) is not None:
                self._events.append((index, event))


class Reader:
    """One reader's place in a feed."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self._position = 0
        self._has_left = False

    async def next_event(self, timeout_s: float | None = None) -> tuple[int, Event] | None:
        """Return the next event with the number of its turn, or None after `timeout_s` seconds.

        Safe to cancel: no event is lost.
        """
        found = await self.feed.get(self._position, timeout_s)
        if found is not None:
            self._position += 1
        return found

    async def aclose(self, grace_s: float = 0.0) -> None:
        """Leave; the last one to leave ends the turns and waits for their clean-up. Idempotent.

        For `grace_s` seconds before that, another one may still join.
        """
        if not self._has_left:
            self._has_left = True
            await self.feed.leave(grace_s)
